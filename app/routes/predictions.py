"""What a deployment captured: looking at it, telling the truth about it, and making a dataset of it."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, Path, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app import views
from app.dependencies import DatabaseHere, PageWanted, ReadSession, SettingsHere, StoreHere, WriteSession, page_of
from app.routes import uploading
from app.routes.datasets import keep_dataset
from app.routes.deployments import Name
from app.security import Caller, Principal, find, needs
from app.uploads.captured import Labels, Row, Task
from app.uploads.disk import on_disk
from models import captures, deployments
from models.database import Database
from models.errors import Conflict, Missing
from models.tables import Deployment, Prediction, Student, utc_now

router = APIRouter(tags=["predictions"])

_WAIT_SECONDS = 2.0
_LOOK_SECONDS = 0.05
_RECENT_SECONDS = 30.0


class Feedback(BaseModel):
    """The true answer, as the label's column of the student's task would have it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Any = Field(
        description="a label; a list of labels; a number; a list of tags, or entities; an answer's text, or answers as "
        "in SQuAD"
    )


class WantedDataset(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field("", max_length=200)
    labels: Labels = "feedback"
    """What stands in the label's column: the feedback, else nothing, for a teacher to say; the student's answers; or
    both, which is the feedback, else the answer."""
    only_unsure_below: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Only rows whose answer has a score below this."""


@router.get("/deployments/{name}/captures", openapi_extra=needs("deploy"))
def list_captures(
    name: Name,
    session: ReadSession,
    who: Caller,
    page: PageWanted,
    labelled: Annotated[bool | None, Query(description="only those with a label, or only those without")] = None,
) -> views.Page[views.Prediction]:
    """What the deployment's capture has kept, newest first, redacted."""
    deployment = deployments.find(session, owner=who.owner, name=name)
    rows, more = page_of(session, captures.captured(deployment.id, labelled=labelled), Prediction.id, page)
    return views.Page[views.Prediction](data=[_view(row) for row in rows], has_more=more)


@router.delete("/deployments/{name}/captures", status_code=status.HTTP_204_NO_CONTENT, openapi_extra=needs("deploy"))
def delete_captures(name: Name, session: WriteSession, who: Caller) -> None:
    """Forget everything that was captured. What is asked from now on is captured as before."""
    captures.clear(session, deployments.find(session, owner=who.owner, name=name).id)


@router.post("/deployments/{name}/captures/dataset", status_code=status.HTTP_201_CREATED, openapi_extra=needs("deploy"))
def create_dataset_of_captures(
    name: Name,
    wanted: WantedDataset,
    who: Caller,
    database: DatabaseHere,
    store: StoreHere,
    settings: SettingsHere,
    response: Response,
) -> views.Dataset:
    """A dataset of the captured inputs, with the columns of the student's task, so that the same job can learn from it.

    Further columns are `answer` (JSON), `score`, `captured_at` and `student`.
    """
    with uploading.working_folder(settings) as folder:
        file = folder / "captured.parquet"
        with database.reading() as session:
            deployment = deployments.find(session, owner=who.owner, name=name)
            task = _task_of(session, deployment)
            count = _write(file, task, _batches(session, deployment.id, task, wanted))
        if not count:
            raise _nothing(name, wanted)
        with file.open("rb") as stream:
            row = keep_dataset(
                stream,
                file.name,
                folder,
                owner=who.owner,
                name=uploading.check_name(wanted.name) or f"{name} captures",
                source=f"deployment:{name}",
                database=database,
                store=store,
                settings=settings,
            )
    response.headers["Location"] = f"/datasets/{row.id}"
    return views.Dataset.model_validate(row)


@router.post("/predictions/{prediction_id}/feedback", openapi_extra=needs("predict"))
async def give_feedback(
    prediction_id: Annotated[str, Path(max_length=64)], feedback: Feedback, database: DatabaseHere, who: Caller
) -> views.Prediction:
    """Tell the true answer of a captured prediction; a second one takes the place of the first.

    The id is that of the header `X-Limbeck-Prediction`. The inputs of one call have it with their place, from 0, behind
    a dot.
    """
    # The row is written a moment after the answer has left, perhaps by another process.
    until = time.monotonic() + (_WAIT_SECONDS if captures.is_recent(prediction_id, _RECENT_SECONDS) else 0.0)
    while not await run_in_threadpool(_is_there, database, prediction_id) and time.monotonic() < until:  # noqa: ASYNC110 - another process writes
        await asyncio.sleep(_LOOK_SECONDS)
    return await run_in_threadpool(_note, database, prediction_id, feedback.label, who)


def _is_there(database: Database, prediction_id: str) -> bool:
    with database.reading() as session:
        return session.get(Prediction, prediction_id) is not None


def _note(database: Database, prediction_id: str, label: Any, who: Principal) -> views.Prediction:
    absent = Missing(
        f"there is no prediction {prediction_id!r}",
        hint="it was not captured, has expired, or was one of several inputs, whose ids end in .0, .1, …",
    )
    with database.writing() as session:
        try:
            row = find(session, Prediction, prediction_id, who)
        except Missing:
            raise absent from None
        deployment = session.get(Deployment, row.deployment_id)
        if deployment is None or row.expires_at <= utc_now():
            raise absent
        captures.label(row, _task_of(session, deployment).truth(label, row.input))
    return _view(row)


def _task_of(session: Session, deployment: Deployment) -> Task:
    """That of the student that serves now: its labels are the ones that feedback is in, whoever gave the answer."""
    student = session.get(Student, deployment.student_id)
    return Task.of({} if student is None else student.manifest)


def _batches(session: Session, deployment_id: str, task: Task, wanted: WantedDataset) -> Iterator[pa.RecordBatch]:
    schema = task.schema()
    for page in captures.pages(session, deployment_id):
        captured = [Row(row.input, row.answer, row.label, row.student_id, row.created_at) for row in page]
        rows = list(task.rows(captured, wanted.labels, wanted.only_unsure_below))
        if rows:
            yield pa.RecordBatch.from_pylist(rows, schema)


def _write(path: FilePath, task: Task, batches: Iterator[pa.RecordBatch]) -> int:
    """The number of rows that were written."""
    count = 0
    with on_disk("the captured rows"), pq.ParquetWriter(path, task.schema(), compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _nothing(name: str, wanted: WantedDataset) -> Conflict:
    if wanted.only_unsure_below is not None:
        hint = "leave only_unsure_below out, or raise it"
    else:
        hint = f'PUT /deployments/{name} with "capture": {{"sample": 1.0}}, and ask it something'
    return Conflict(f"deployment {name!r} has captured nothing of that kind", code="nothing_captured", hint=hint)


def _view(row: Prediction) -> views.Prediction:
    return views.Prediction(
        id=row.id,
        student=row.student_id,
        arm=row.arm,
        input=row.input,
        answer=row.answer,
        label=row.label,
        bytes=row.bytes,
        labelled_at=row.labelled_at,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
