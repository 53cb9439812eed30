"""`python -m benchmarks.methods DATA_DIR`: every method on every kind of task, as a table, by one command.

Each cell is a job as a user would send it, run by the recipe itself, without a service: parsed, resolved, distilled. A
cell that has a result is not run again, so that the command goes on where it was stopped; one that failed is tried
again. Cells run in processes of their own and share one cache, so that no teacher or control is trained twice.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks.cells import MODEL, Cell, cells, small
from benchmarks.results import Result, best_preset, render, specs_of
from benchmarks.rows import prepare
from models.errors import Invalid, LimbeckError
from models.specs import ResolvedSpec, SplitByDataset, parse_job, resolve
from worker.protocol import Assignment, PhaseName, StopReason
from worker.recipe import distil

Device = Literal["cpu", "gpu"]

_VERSIONS = ("limbeck-server", "torch", "transformers", "tokenizers", "numpy", "onnxruntime")
_CACHE_BYTES = 50 * 1000**3
_SHOWN_OF_A_CRASH = 500


class Notes:
    """Implements `worker.protocol.Report`: keeps what the table needs, and says the rest on standard error."""

    def __init__(self) -> None:
        self.validation: dict[tuple[int, int], dict[str, float]] = {}
        """By (stage, phase): the best of each of the distilled student's validation scores."""
        self._times: list[float] = []

    def phase(self, phase: PhaseName) -> None:
        typer.echo(f"  {phase}", err=True)

    def progress(self, progress: float, eta_seconds: float | None = None) -> None:
        pass

    def metric(self, arm: str, stage: int, phase: int, name: str, step: int, value: float) -> None:
        if arm != "distilled" or name.startswith("test_"):
            return
        self._times.append(time.monotonic())
        if name.startswith("validation_"):
            typer.echo(f"  stage {stage}, phase {phase}, step {step}: {name} {value:.4f}", err=True)
            best = self.validation.setdefault((stage, phase), {})
            key = name.removeprefix("validation_")
            best[key] = max(value, best.get(key, value))

    def event(self, code: str, message: str, **data: Any) -> None:
        typer.echo(f"  {code}: {message} {data or ''}", err=True)

    def checkpoint(self, step: int, path: Path) -> None:
        pass

    def stop_requested(self) -> StopReason | None:
        return None

    @property
    def training_seconds(self) -> float | None:
        """From the distilled student's first number to its last; None if it told none."""
        return self._times[-1] - self._times[0] if self._times else None

    def best_validation(self, metric: str) -> float | None:
        """Of the last phase, the one whose answers count."""
        return self.validation[max(self.validation)].get(metric) if self.validation else None


# --- one cell ---------------------------------------------------------------------------------------------------------


def run_cell(cell: Cell, datasets: dict[str, Path], work: Path, device: Device) -> Result:
    """Run the cell's job in this process. What the job itself can foresee as an error is a result too."""
    notes = Notes()
    attempt = work / "attempts" / cell.file
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir(parents=True)
    # A teacher has a cache of its own: what lies in it afterwards is the teacher, whatever its hash.
    cache = work / "cache" if cell.makes is None else attempt / "cache"
    report, error = None, None
    try:
        spec = resolve(parse_job(cell.spec))
        folder = distil(_assignment(spec, cell, datasets, work, attempt, cache, device), notes)
        report = json.loads((folder / "report.json").read_text("utf-8"))
        if cell.makes is not None:
            _keep_teacher(cache, work / "models" / cell.makes)
    except LimbeckError as failure:
        error = _sentence(failure)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    validation = None if report is None else notes.best_validation(report["metric"])
    return _result(cell, device, report=report, error=error, validation=validation, seconds=notes.training_seconds)


def _assignment(
    spec: ResolvedSpec, cell: Cell, datasets: dict[str, Path], work: Path, attempt: Path, cache: Path, device: Device
) -> Assignment:
    if not isinstance(spec.dataset, SplitByDataset):
        raise TypeError("cells name three datasets")
    ids = (spec.dataset.train, spec.dataset.validation, spec.dataset.test)
    missing = [name for name in ids if name not in datasets]
    if missing:
        raise LimbeckError(f"the data folder has nothing for {', '.join(missing)}")
    return Assignment(
        job_id=cell.file,
        attempt=1,
        spec=spec,
        datasets={name: datasets[name].absolute() for name in ids},
        models_folder=(work / "models").absolute(),
        work=attempt.absolute(),
        cache=cache.absolute(),
        cache_bytes=_CACHE_BYTES,
        device=device,
        tick_timeout=1e9,
        checkpoint_seconds=1e9,
    )


def _keep_teacher(cache: Path, target: Path) -> None:
    """The one fine-tuned teacher in `cache` becomes `target`, whole or not at all."""
    (folder,) = (path.parent for path in cache.glob("teachers/*/config.json"))
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    part.rename(target)


def _sentence(failure: LimbeckError) -> str:
    parts = [f"{failure.code}: {failure.message}"]
    if isinstance(failure, Invalid):
        parts += [f"{problem.pointer}: {problem.message}" for problem in failure.problems]
    return "; ".join([*parts, *([failure.hint] if failure.hint else [])])


def _result(
    cell: Cell,
    device: Device,
    *,
    report: dict[str, Any] | None = None,
    error: str | None = None,
    validation: float | None = None,
    seconds: float | None = None,
) -> Result:
    return Result(
        name=cell.name,
        spec=cell.spec,
        report=report,
        error=error,
        validation=validation,
        training_seconds=seconds,
        device=device,
        date=datetime.now(UTC).date().isoformat(),
        versions={"Python": sys.version.split()[0], **{name: version(name) for name in _VERSIONS}},
    )


# --- all of them ------------------------------------------------------------------------------------------------------


def outstanding(wanted: Sequence[Cell], results: Path) -> list[Cell]:
    """The cells without a result, and those that failed."""
    found = ((cell, Result.read(results, cell)) for cell in wanted)
    return [cell for cell, result in found if result is None or result.error is not None]


def chosen(every: Sequence[Cell], only: str) -> list[Cell]:
    """The cells whose names match, and the teachers that they need, in the order of `every`."""
    names = {cell.name for cell in every if re.search(only, cell.name)}
    needed = {name for cell in every if cell.name in names for name in cell.needs}
    return [cell for cell in every if cell.name in names | needed]


def run_all(wanted: Sequence[Cell], source: Path, work: Path, jobs: int, device: Device) -> None:
    """Run what is outstanding, the teachers first, `jobs` at a time; a result for each stands under `work`."""
    waiting = outstanding(wanted, work / "results")
    typer.echo(f"{len(wanted) - len(waiting)} of {len(wanted)} cells are done already", err=True)
    run = partial(_in_a_process, source=source, work=work, jobs=jobs, device=device)
    for batch in ([cell for cell in waiting if cell.makes], [cell for cell in waiting if not cell.makes]):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, batch))


def _in_a_process(cell: Cell, source: Path, work: Path, jobs: int, device: Device) -> None:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    began = time.monotonic()
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{cell.file}.log"
    with log.open("w", encoding="utf-8") as file:
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.methods", str(source)),
                *("--work", str(work), "--device", device, "--cell", json.dumps(cell.as_json())),
            ],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=file,
            stderr=file,
            check=False,
        )
    if finished.returncode:
        tail = log.read_text("utf-8")[-_SHOWN_OF_A_CRASH:]
        _result(cell, device, error=f"the process ended with {finished.returncode}: {tail}").write(
            work / "results", cell
        )
    result = Result.read(work / "results", cell)
    failed = result is None or result.error is not None
    typer.echo(f"{'FAILED' if failed else 'done'}  {cell.name}  {time.monotonic() - began:.0f} s", err=True)


def collect(wanted: Sequence[Cell], work: Path) -> dict[str, Result]:
    """The results that there are, by the cells' names."""
    found = ((cell.name, Result.read(work / "results", cell)) for cell in wanted)
    return {name: result for name, result in found if result is not None}


def main(
    data_dir: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="sst2/, stsb/, wnut17/ and xquad/.")],
    only: Annotated[str, typer.Option(help="Run cells whose names match this regular expression.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at the same time.")] = 1,
    device: Annotated[Device, typer.Option()] = "cpu",
    out: Annotated[Path, typer.Option(help="The Markdown; a .json with the specs stands beside it.")] = Path(
        "docs/benchmarks/methods.md"
    ),
    work: Annotated[Path, typer.Option(help="Results, caches and teachers: what a later call goes on from.")] = Path(
        "build/benchmarks"
    ),
    teacher: Annotated[str, typer.Option(help="The model that every teacher is fine-tuned from.")] = MODEL,
    rows: Annotated[
        int | None, typer.Option(min=1, help="At most so many training rows: to try it out, not to measure.")
    ] = None,
    cell: Annotated[str | None, typer.Option(hidden=True, help="Run this one cell, given as JSON.")] = None,
) -> None:
    """Run the cells that have no result yet, and write the table of all that have one."""
    datasets = prepare(data_dir, work / "data")
    if cell is not None:
        one = Cell.from_json(json.loads(cell))
        run_cell(one, datasets, work, device).write(work / "results", one)
        return

    def every(best: str) -> list[Cell]:
        found = cells(range(seeds), best=best, model=teacher)
        return found if rows is None else [small(cell, rows) for cell in found]

    run_all(chosen(every("hinton"), only), data_dir, work, jobs, device)
    best = best_preset(collect(every("hinton"), work))
    run_all(chosen(every(best), only), data_dir, work, jobs, device)
    results = collect(every(best), work)
    specs = out.with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    capped = "" if rows is None else f" --rows {rows}"
    command = f"python -m benchmarks.methods DATA_DIR --seeds {seeds} --device {device} --teacher {teacher}{capped}"
    out.write_text(render(every(best), results, specs=specs.name, command=command), "utf-8")
    specs.write_text(specs_of(every(best), results) + "\n", "utf-8")
    typer.echo(
        f"{out}: {len(results)} cells, {sum(result.error is not None for result in results.values())} of them failed"
    )


if __name__ == "__main__":
    typer.run(main)
