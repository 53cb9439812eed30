"""Published students: what is known of them, and their files."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, BinaryIO

import structlog
from fastapi import APIRouter, Header, Query, Response, status
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import security, views
from app.dependencies import DatabaseHere, PageWanted, ReadSession, StoreHere, WriteSession, page_of
from app.routes import disagreements
from app.security import Caller, needs, only_own
from models import deployments, economics
from models.artifacts import Store
from models.database import Database, after_commit
from models.errors import Conflict, LimbeckError
from models.tables import Student

router = APIRouter(tags=["students"])

_CHUNK = 256 * 1024
_MOST = 1e12
"""Above every amount and volume that there is; their products stay finite."""

log = structlog.get_logger("limbeck.app")


@router.get("/students", openapi_extra=needs("read"))
def list_students(
    session: ReadSession, wanted: PageWanted, who: Caller, name: str | None = None
) -> views.Page[views.Student]:
    """One's own, newest first; with `admin` everybody's."""
    statement = only_own(select(Student), Student.owner, who)
    if name is not None:
        statement = statement.where(Student.name == name)
    rows, has_more = page_of(session, statement, Student.id, wanted)
    return views.Page(data=_views(session, rows), has_more=has_more)


@router.get("/students/{student_id}", openapi_extra=needs("read"))
def read_student(student_id: str, session: ReadSession, who: Caller) -> views.Student:
    """What it is, what it answers with, and which deployments point at it."""
    return _views(session, [security.find(session, Student, student_id, who)])[0]


@router.get("/students/{student_id}/report", openapi_extra=needs("read"))
def read_report(student_id: str, session: ReadSession, who: Caller) -> dict[str, Any]:
    """The report as the worker wrote it: arms, comparisons, the gate, and a verdict in one sentence."""
    return security.find(session, Student, student_id, who).report


@router.get("/students/{student_id}/disagreements", openapi_extra=needs("read"))
def list_disagreements(
    student_id: str,
    database: DatabaseHere,
    store: StoreHere,
    who: Caller,
    after: Annotated[int | None, Query(ge=0, description="the `row` of the last one of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    right: Annotated[disagreements.Right | None, Query(description="only those that it got right")] = None,
    truth: Annotated[
        str | None, Query(max_length=1000, description="only those with this label, tag or answer")
    ] = None,
) -> views.Page[views.Disagreement]:
    """The test rows on which the student and its teacher differ, at most 500: of single labels those first on which
    both were surest. 404 (`no_disagreements`) where they were not kept."""
    with database.reading() as session:  # closed before the file is read
        artifact = disagreements.file_of(security.find(session, Student, student_id, who))
    rows = disagreements.read(store, artifact)
    return disagreements.chosen(rows, right=right, truth=truth, after=after, limit=limit)


class Prices(BaseModel):
    """What the teacher's API and this host cost. Amounts are in one currency, whichever it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calls_per_month: float = Field(gt=0, le=_MOST, allow_inf_nan=False)
    host_cost_per_month: float = Field(
        ge=0, le=_MOST, allow_inf_nan=False, description="of one host that serves the student"
    )
    price_per_call: float | None = Field(
        None, gt=0, le=_MOST, allow_inf_nan=False, description="of the teacher's API; or price_per_1k_tokens"
    )
    tokens_per_call: float | None = Field(
        None, gt=0, le=_MOST, allow_inf_nan=False, description="prompt, text and answer together"
    )
    price_per_1k_tokens: float | None = Field(
        None, gt=0, le=_MOST, allow_inf_nan=False, validate_default=True, description="needs tokens_per_call"
    )
    training_cost: float | None = Field(
        None, ge=0, le=_MOST, allow_inf_nan=False, description="default: what the host costs for the job's time"
    )
    fallback_coverage: float = Field(
        1.0, gt=0, le=1, description="the share of the calls that the student answers; its teacher answers the others"
    )

    @field_validator("price_per_1k_tokens")
    @classmethod
    def _one_price(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Just one of the two prices, and tokens to go with the second. What is wrong by itself is not blamed twice."""
        known = info.data
        if "price_per_call" in known and (value is None) == (known["price_per_call"] is None):
            raise PydanticCustomError("one_price", "give one of price_per_call and price_per_1k_tokens", {})
        if "tokens_per_call" in known and (value is None) != (known["tokens_per_call"] is None):
            raise PydanticCustomError("one_price", "price_per_1k_tokens and tokens_per_call go together", {})
        return value

    def terms(self, report: Mapping[str, Any]) -> economics.Terms:
        """With what the report of the student has measured: its training's seconds, and its speed."""
        price = self.price_per_call
        if self.price_per_1k_tokens is not None and self.tokens_per_call is not None:
            price = economics.price_of_tokens(self.price_per_1k_tokens, self.tokens_per_call)
        training = self.training_cost
        if training is None:
            seconds = sum((report.get("seconds") or {}).values())
            training = economics.cost_of_training(seconds, self.host_cost_per_month)
        student = (report.get("arms") or {}).get("distilled") or {}
        served = (student.get("precisions") or {}).get(student.get("served")) or {}
        return economics.Terms(
            price_per_call=price or 0.0,
            calls_per_month=self.calls_per_month,
            host_cost_per_month=self.host_cost_per_month,
            training_cost=training,
            fallback_coverage=self.fallback_coverage,
            texts_per_second=served.get("texts_per_second"),
        )


@router.get("/students/{student_id}/economics", openapi_extra=needs("read"))
def read_economics(
    student_id: str, session: ReadSession, who: Caller, prices: Annotated[Prices, Query()]
) -> views.Economics:
    """What a month of the student costs, against a month of its teacher's API; when it pays. `docs/economics.md` has
    the formula."""
    report = security.find(session, Student, student_id, who).report
    terms = prices.terms(report)
    found = economics.compare(terms)
    return views.Economics(
        student=student_id,
        terms=views.Terms(**asdict(terms)),
        **asdict(found),
        measured_on=report.get("host"),
        verdict=economics.sentence(terms, found),
    )


@router.get("/students/{student_id}/files", openapi_extra=needs("read"))
def list_files(student_id: str, session: ReadSession, who: Caller) -> views.Page[views.File]:
    """All files of the artifact with their hashes, as its manifest has them."""
    manifest = security.find(session, Student, student_id, who).manifest
    files = sorted(manifest.get("files", {}).items())
    return views.Page(data=[views.File(path=path, sha256=entry["sha256"], size=entry["size"]) for path, entry in files])


@router.get("/students/{student_id}/files/{path:path}", openapi_extra=needs("read"), response_class=StreamingResponse)
def read_file(
    student_id: str,
    path: str,
    database: DatabaseHere,
    store: StoreHere,
    who: Caller,
    if_none_match: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """One file of the artifact. `path` is looked up among the manifest's entries, and never made into a path."""
    with database.reading() as session:  # closed before the file is streamed
        artifact = security.find(session, Student, student_id, who).artifact
    file, entry = store.open_file(artifact, path)
    etag = f'"{entry.sha256}"'
    if if_none_match is not None and etag in if_none_match:
        file.close()
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers={"ETag": etag})
    headers = {
        "Content-Length": str(entry.size),
        "Content-Disposition": "attachment",
        "Cache-Control": "private, max-age=31536000, immutable",
        "ETag": etag,
    }
    return StreamingResponse(_chunks(file), media_type="application/octet-stream", headers=headers)


@router.delete("/students/{student_id}", status_code=status.HTTP_204_NO_CONTENT, openapi_extra=needs("deploy"))
def delete_student(
    student_id: str, session: WriteSession, database: DatabaseHere, store: StoreHere, who: Caller
) -> None:
    """The export of its teacher goes with the last student that shares it."""
    row = security.find(session, Student, student_id, who)
    names = deployments.pointing_at(session, [student_id])[student_id]
    if names:
        raise Conflict(
            f"deployment {names[0]!r} points at this student",
            code="student_deployed",
            hint="point the deployment elsewhere, or delete it, first",
        )
    session.delete(row)
    after_commit(session, lambda: _delete_artifact(store, row.artifact))
    shared = row.teacher_artifact
    if shared is not None:
        after_commit(session, lambda: _delete_unnamed(database, store, shared))


def _views(session: Session, rows: list[Student]) -> list[views.Student]:
    names = deployments.pointing_at(session, [row.id for row in rows])
    return [_view(row, names[row.id]) for row in rows]


def _view(row: Student, names: list[str]) -> views.Student:
    manifest, report = row.manifest, row.report
    return views.Student(
        id=row.id,
        name=row.name,
        job_id=row.job_id,
        hash=row.hash,
        task=manifest.get("task"),
        labels=manifest.get("labels", []),
        precision=manifest.get("precision"),
        bytes=sum(entry["size"] for entry in manifest.get("files", {}).values()),
        verdict=report.get("verdict"),
        gate_passed=(report.get("gate") or {}).get("passed"),
        deployments=names,
        created_at=row.created_at,
    )


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _delete_unnamed(database: Database, store: Store, key: str) -> None:
    """Asked after the commit, so that of two students deleted at once one is the last."""
    with database.reading() as session:
        named = session.scalar(select(Student.id).where(Student.teacher_artifact == key).limit(1))
    if named is None:
        _delete_artifact(store, key)


def _delete_artifact(store: Store, key: str) -> None:
    """The row is gone and committed: a store that refuses leaves an orphan, not an error for the caller."""
    try:
        store.delete(key)
    except LimbeckError as error:
        log.warning("an artifact was not deleted", key=key, reason=error.message)
