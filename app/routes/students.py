"""Published students: what is known of them, and their files."""

from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO

import structlog
from fastapi import APIRouter, Header, Response, status
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import security, views
from app.dependencies import DatabaseHere, PageWanted, ReadSession, StoreHere, WriteSession, page_of
from app.security import Caller, needs, only_own
from models import deployments
from models.artifacts import Store
from models.database import after_commit
from models.errors import Conflict, LimbeckError
from models.tables import Student

router = APIRouter(tags=["students"])

_CHUNK = 256 * 1024

log = structlog.get_logger("limbeck.app")


@router.get("/students", openapi_extra=needs("read"))
def list_students(
    session: ReadSession, wanted: PageWanted, who: Caller, name: str | None = None
) -> views.Page[views.Student]:
    statement = only_own(select(Student), Student.owner, who)
    if name is not None:
        statement = statement.where(Student.name == name)
    rows, has_more = page_of(session, statement, Student.id, wanted)
    return views.Page(data=_views(session, rows), has_more=has_more)


@router.get("/students/{student_id}", openapi_extra=needs("read"))
def read_student(student_id: str, session: ReadSession, who: Caller) -> views.Student:
    return _views(session, [security.find(session, Student, student_id, who)])[0]


@router.get("/students/{student_id}/report", openapi_extra=needs("read"))
def read_report(student_id: str, session: ReadSession, who: Caller) -> dict[str, Any]:
    """The report as the worker wrote it: arms, comparisons, the gate, and a verdict in one sentence."""
    return security.find(session, Student, student_id, who).report


@router.get("/students/{student_id}/files", openapi_extra=needs("read"))
def list_files(student_id: str, session: ReadSession, who: Caller) -> views.Page[views.File]:
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
def delete_student(student_id: str, session: WriteSession, store: StoreHere, who: Caller) -> None:
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


def _delete_artifact(store: Store, key: str) -> None:
    """The row is gone and committed: a store that refuses leaves an orphan, not an error for the caller."""
    try:
        store.delete(key)
    except LimbeckError as error:
        log.warning("an artifact was not deleted", key=key, reason=error.message)
