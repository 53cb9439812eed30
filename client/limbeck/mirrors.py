"""A job's curves, choices and report, copied to where a team looks already: TensorBoard or MLflow.

`mirror` follows a job that runs, and copies one that has ended. Each place is a `Mirror`; both need an extra of the
distribution, `limbeck[tensorboard]` or `limbeck[mlflow]`. A series of a job is (arm, stage, phase, name).
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from limbeck.client import Client
from limbeck.errors import ApiError, LimbeckError, ServiceUnreachable
from limbeck.extras import extra
from limbeck.objects import Job, Point

_LOOK_SECONDS = 2.0
_BATCH_PARAMETERS = 100
_BATCH_METRICS = 1000
_LONGEST_PARAMETER = 500
"""Characters: what an MLflow server of any age takes."""
_STATUSES = {"succeeded": "FINISHED", "cancelled": "KILLED"}


class Mirror(Protocol):
    """A place that a job is copied to."""

    def choices(self, spec: Mapping[str, Any]) -> None:
        """The resolved spec, once, before anything else."""

    def points(self, points: Sequence[Point]) -> None:
        """Points that were not there before."""

    def document(self, name: str, text: str) -> None:
        """A file that came of it: `report.json` or `README.md`."""

    def close(self, job: Job) -> None:
        """The job has ended so, or is followed no longer."""


def mirror(client: Client, job_id: str, mirrors: Sequence[Mirror]) -> Job:
    """Copy a job until it has ended, and what came of it; the job as it was then.

    A restart of the service does not end it. Each mirror is closed, whatever happens.
    """
    job = client.jobs.get(job_id)
    copied: dict[tuple[str, int, int, str], int] = {}
    asked = 0.0

    def copy() -> None:
        points = list(_fresh(client.jobs.metrics(job_id), copied))
        for one in mirrors:
            one.points(points)

    def look(now: Job) -> None:
        nonlocal asked, job
        job = now
        if not now.ended and time.monotonic() - asked >= _LOOK_SECONDS:
            asked = time.monotonic()
            with suppress(ServiceUnreachable):  # what is missed now comes with the next look
                copy()

    try:
        for one in mirrors:
            one.choices(job.resolved_spec or job.spec)
        job = client.jobs.wait(job_id, on_update=look)
        copy()
        for name, text in _documents(client, job):
            for one in mirrors:
                one.document(name, text)
    finally:
        for one in mirrors:
            one.close(job)
    return job


def _fresh(points: Sequence[Point], copied: dict[tuple[str, int, int, str], int]) -> Iterator[Point]:
    """Those of `points` that come after the last step of their series in `copied`, where they are put down."""
    for point in points:
        series = (point.arm, point.stage, point.phase, point.name)
        if point.step > copied.get(series, -1):
            copied[series] = point.step
            yield point


def _documents(client: Client, job: Job) -> Iterator[tuple[str, str]]:
    if job.student_id is None:
        return
    try:
        yield "report.json", json.dumps(client.students.report(job.student_id), indent=1, ensure_ascii=False)
        yield "README.md", client.students.card(job.student_id)
    except ApiError as error:
        if error.status != 404:  # the student is deleted, or was published before there were cards
            raise


def flat(document: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a spec with their paths: `method.temperature`, `teachers.0.model`. What is null is left out."""
    match document:
        case Mapping():
            for key, value in document.items():
                yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
        case list():
            for index, value in enumerate(document):
                yield from flat(value, f"{prefix}.{index}")
        case None:
            return
        case str():
            yield prefix, document
        case _:
            yield prefix, json.dumps(document)


class TensorBoard:
    """Event files below `folder`, in a folder for the job with one for each arm, stage and phase in it.

    So the curves of the same name lie over each other, in the colours of the arms.
    """

    def __init__(self, folder: Path, job_id: str) -> None:
        self._library = extra("tensorboardX", "tensorboard")
        self._folder = folder / job_id
        self._writers: dict[str, Any] = {}

    def choices(self, spec: Mapping[str, Any]) -> None:
        rows = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in flat(spec))
        self._writer("").add_text("spec", f"| | |\n|---|---|\n{rows}")

    def points(self, points: Sequence[Point]) -> None:
        for point in points:
            writer = self._writer(f"{point.arm}-stage-{point.stage}-phase-{point.phase}")
            writer.add_scalar(point.name, point.value, point.step)
        for writer in self._writers.values():
            writer.flush()

    def document(self, name: str, text: str) -> None:
        self._writer("").add_text(name, f"```json\n{text}\n```" if name.endswith(".json") else text)

    def close(self, job: Job) -> None:
        self._writer("").add_text("status", job.status)
        for writer in self._writers.values():
            writer.close()

    def _writer(self, name: str) -> Any:
        if name not in self._writers:
            self._writers[name] = self._library.SummaryWriter(str(self._folder / name))
        return self._writers[name]


class Mlflow:
    """A run of the experiment `experiment` on the tracking server, or in the store, that `uri` names."""

    def __init__(self, uri: str, experiment: str, job: Job) -> None:
        self._library = extra("mlflow", "mlflow")
        try:
            self._client = self._library.MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
            tags = {"limbeck.job": job.id}
            run = self._client.create_run(experiment_id, run_name=job.name or job.id, tags=tags)
        except self._library.MlflowException as error:
            raise LimbeckError(f"MLflow at {uri} refuses: {error}") from error
        self._run: str = run.info.run_id

    def choices(self, spec: Mapping[str, Any]) -> None:
        kind = self._library.entities.Param
        found = [kind(name, value[:_LONGEST_PARAMETER]) for name, value in flat(spec)]
        for at in range(0, len(found), _BATCH_PARAMETERS):
            self._client.log_batch(self._run, params=found[at : at + _BATCH_PARAMETERS])

    def points(self, points: Sequence[Point]) -> None:
        kind = self._library.entities.Metric
        now = int(time.time() * 1000)
        found = [
            kind(f"{one.arm}/stage {one.stage}/phase {one.phase}/{one.name}", one.value, now, one.step)
            for one in points
        ]
        for at in range(0, len(found), _BATCH_METRICS):
            self._client.log_batch(self._run, metrics=found[at : at + _BATCH_METRICS])

    def document(self, name: str, text: str) -> None:
        self._client.log_text(self._run, text, name)

    def close(self, job: Job) -> None:
        status = _STATUSES.get(job.status, "FAILED") if job.ended else "KILLED"
        if job.student_id is not None:
            self._client.set_tag(self._run, "limbeck.student", job.student_id)
        self._client.set_terminated(self._run, status)
