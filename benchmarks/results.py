"""What came of a cell: kept as JSON, averaged over its seeds, and shown as Markdown. Runs nothing.

Scores and differences are shares (1 is all); the table shows them in points (100 is all).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Self

from benchmarks.cells import PRESETS, STUDENTS, Cell, JsonObject

_HEADINGS: Mapping[str, str] = {
    "teacher": "Teachers",
    "sst2": "SST-2, 10,000 training rows: every preset",
    "sst2-full": "SST-2, all training rows",
    "sst2-few": "SST-2, 2,000 rows with labels and the others without",
    "stsb": "STS-B: similarity of two sentences",
    "wnut17": "W-NUT 2017: entities",
    "xquad": "XQuAD in English: answers in a context",
    "ensemble": "An ensemble against its members (SST-2, 10,000 training rows)",
    "chain": "A chain against the direct way (SST-2, 10,000 training rows)",
    "self": "A student that teaches itself (SST-2, 10,000 training rows)",
}


@dataclass(frozen=True)
class Result:
    """`report` is the job's report.json, `error` what kept it from having one; one of the two is null."""

    name: str
    spec: JsonObject
    report: JsonObject | None
    error: str | None
    validation: float | None
    """The distilled student's best score on the validation rows, by which presets are chosen."""
    training_seconds: float | None
    """Of the distilled student alone, validation included."""
    device: str
    date: str
    versions: dict[str, str]

    def write(self, folder: Path, cell: Cell) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{cell.file}.part"
        part.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), "utf-8")
        part.rename(folder / f"{cell.file}.json")

    @classmethod
    def read(cls, folder: Path, cell: Cell) -> Self | None:
        """The result of exactly this cell; None where there is none yet, or it is of another spec."""
        path = folder / f"{cell.file}.json"
        if not path.exists():
            return None
        found = cls(**json.loads(path.read_text("utf-8")))
        return found if found.spec == cell.spec else None


def best_preset(results: Mapping[str, Result]) -> str:
    """The preset with the best mean validation score over the sizes and seeds; `hinton` while no preset has all."""
    scores: dict[str, float] = {}
    wanted = max((len(_of_preset(results, preset)) for preset in PRESETS), default=0)
    for preset in PRESETS:
        found = [result.validation for result in _of_preset(results, preset) if result.validation is not None]
        if found and len(found) == wanted:
            scores[preset] = mean(found)
    return max(scores, key=scores.__getitem__) if scores else "hinton"


def _of_preset(results: Mapping[str, Result], preset: str) -> list[Result]:
    prefixes = tuple(f"sst2/{preset}/{size}/seed-" for size in STUDENTS)
    return [result for name, result in results.items() if name.startswith(prefixes)]


# --- Markdown ---------------------------------------------------------------------------------------------------------


def render(cells: Sequence[Cell], results: Mapping[str, Result], *, specs: str, command: str) -> str:
    """The whole document, of the cells that have a result. `specs`: the file beside it that `specs_of` fills."""
    done = [cell for cell in cells if cell.name in results]
    parts = [_head([results[cell.name] for cell in done], specs, command)]
    by_section: dict[str, list[Cell]] = {}
    for cell in done:
        by_section.setdefault(cell.name.partition("/")[0], []).append(cell)
    for section, members in by_section.items():
        show = _teachers if section == "teacher" else _table
        parts.append(f"## {_HEADINGS.get(section, section)}\n\n{show(members, results)}")
    failed = [results[cell.name] for cell in done if results[cell.name].error is not None]
    if failed:
        lines = "\n".join(f"- `{result.name}`: {_one_line(result.error)}" for result in failed)
        parts.append(f"## Failed\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def specs_of(cells: Sequence[Cell], results: Mapping[str, Result]) -> str:
    """JSON: each cell that has a result, with its exact spec and its numbers."""
    return json.dumps(
        {cell.name: {"spec": cell.spec, **_numbers(results[cell.name])} for cell in cells if cell.name in results},
        indent=1,
        ensure_ascii=False,
    )


def _numbers(result: Result) -> JsonObject:
    report = result.report
    if report is None:
        return {"error": result.error}
    return {
        "metric": report["metric"],
        "rows": report["rows"],
        "validation": result.validation,
        "scores": {name: arm and arm["score"] for name, arm in {**report["arms"], **report["others"]}.items()},
        "comparisons": report["comparisons"],
        "training_seconds": result.training_seconds,
    }


def _head(results: Sequence[Result], specs: str, command: str) -> str:
    if not results:
        return "# Methods, measured\n\nNothing was measured yet."
    versions = sorted({f"{name} {version}" for result in results for name, version in result.versions.items()})
    hosts = sorted(
        {f"{one.report['host']['cpu']}, {one.report['host']['cores']} cores" for one in results if one.report}
    )
    dates = sorted({result.date for result in results})
    seeds = sorted({int(result.spec["seed"]) for result in results})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"""# Methods, measured

Written by `{command}`; do not edit.

- Date: {when}. Trained on: {", ".join(sorted({result.device for result in results}))}. Host: {"; ".join(hosts) or "–"}.
- Versions: {", ".join(versions)}.
- Seeds: {", ".join(map(str, seeds))}. A cell's seed decides the order of its rows and whatever is drawn; the fine-tuned
  teacher is the same one for all of them.
- Scores are points of the main metric on the test rows: mean ± standard deviation over the seeds. *Control* is the same
  student trained as long on the labels alone. *Gain* is distilled − control on the same rows, for each seed with its
  95 % paired bootstrap interval and, where an answer is right or wrong, McNemar's p; bold where it leaves 0 out.
- *Validation* chooses between presets; test rows choose nothing. Seconds are those of the distilled student's training.
- The exact specs and every number: [{specs}]({specs})."""


def _teachers(cells: Sequence[Cell], results: Mapping[str, Result]) -> str:
    rows = []
    for cell in cells:
        report = results[cell.name].report
        name = cell.name.removeprefix("teacher/")
        if report is None:
            rows.append([name, "failed", "", "", ""])
            continue
        arm = report["arms"]["teacher"]
        rows.append(
            [name, f"{report['rows']['train']:,}", report["metric"], _points(arm["score"]), f"{arm['parameters']:,}"]
        )
    return _markdown(["teacher", "training rows", "metric", "test score", "parameters"], rows)


def _table(cells: Sequence[Cell], results: Mapping[str, Result]) -> str:
    rows = []
    notes = []
    for group, members in groupby(cells, key=lambda cell: cell.group):
        found = [results[cell.name] for cell in members]
        name = group.partition("/")[2].replace("/", ", ")
        reports = [result.report for result in found if result.report is not None]
        if not reports:
            rows.append([name, "failed", *[""] * 9])
            continue
        failed = f" ({len(found) - len(reports)} failed)" if len(reports) < len(found) else ""
        rows.append([name + failed, *_cells_of_row(found, reports)])
        notes += [f"- {name}: {note}" for note in _others(reports)]
    head = ["", "training rows", "fewer parameters", "metric", "teacher", "distilled", "control", "untrained"]
    table = _markdown([*head, "gain, by seed", "validation", "seconds"], rows)
    return f"{table}\n\n{chr(10).join(notes)}" if notes else table


def _cells_of_row(results: Sequence[Result], reports: Sequence[JsonObject]) -> list[str]:
    first = reports[0]

    def arm(name: str, of: Callable[[JsonObject], float | None] = lambda one: one["score"]) -> str:
        return _spread([None if report["arms"][name] is None else of(report["arms"][name]) for report in reports])

    return [
        f"{first['rows']['train']:,}",
        _fewer(first),
        first["metric"],
        arm("teacher"),
        arm("distilled"),
        arm("control"),
        arm("untrained"),
        "<br>".join(_gain(report["comparisons"]) for report in reports),
        _spread([result.validation for result in results]),
        _seconds([result.training_seconds for result in results]),
    ]


def _fewer(report: JsonObject) -> str:
    teacher, student = report["arms"]["teacher"]["parameters"], report["arms"]["distilled"]["parameters"]
    return f"{100 * (1 - student / teacher):.1f} %" if teacher and student else "–"


def _gain(comparisons: JsonObject) -> str:
    gain = comparisons["gain_over_control"]
    if gain is None:
        return "–"
    p = comparisons["mcnemar_p"]["distilled_against_control"]
    text = _interval(gain)
    return text if p is None else f"{text}, p {p:.2g}"


def _others(reports: Sequence[JsonObject]) -> list[str]:
    """A line for each further network: its score, and what the distilled student has over it."""
    names = dict.fromkeys(name for report in reports for name in report["others"])
    lines = []
    for name in names:
        having = [report for report in reports if name in report["others"]]
        scores = _spread([report["others"][name]["score"] for report in having])
        compared = [report["comparisons"]["others"] for report in having]
        gains = "; ".join(_interval(one[name]) for one in compared if name in one)
        lines.append(f"{name} {scores}" + (f"; distilled − {name} by seed: {gains}" if gains else ""))
    return lines


def _interval(difference: Mapping[str, float]) -> str:
    value, low, high = (_signed(difference[part]) for part in ("value", "low", "high"))
    text = f"{value} [{low}, {high}]"
    return f"**{text}**" if difference["low"] > 0 or difference["high"] < 0 else text


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return _points(mean(known)) + (f" ± {_points(stdev(known))}" if len(known) > 1 else "")


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):,.0f}" if known else "–"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "−")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(part).replace('|', '/') for part in line)} |" for line in lines)
