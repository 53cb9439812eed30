"""Teachers that were uploaded: a checkpoint with its config and tokenizer, named by jobs as `teacher:tc_…`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from sqlalchemy import select

from app import views
from app.dependencies import (
    DatabaseHere,
    PageWanted,
    ReadSession,
    SettingsHere,
    StoreHere,
    WriteSession,
    page_of,
)
from app.routes import uploading
from app.security import Caller, find, needs, only_own
from app.uploads import checkpoints
from models.artifacts import write_manifest
from models.database import after_commit
from models.errors import Invalid, Problem
from models.tables import Teacher, new_id

router = APIRouter(tags=["teachers"])

_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {
                    "files": {
                        "type": "array",
                        "items": {"type": "string", "contentMediaType": "application/octet-stream"},
                        "description": "config.json, tokenizer.json, model.safetensors, …",
                    },
                    "name": {"type": "string", "maxLength": 200, "description": "default: the model_type"},
                },
            }
        }
    },
}


@router.post(
    "/teachers", status_code=201, openapi_extra={**needs("jobs"), "requestBody": _BODY}, summary="Upload a checkpoint"
)
def create_teacher(
    received: Annotated[uploading.Form | dict[str, Any], Depends(uploading.receive)],
    who: Caller,
    database: DatabaseHere,
    store: StoreHere,
    settings: SettingsHere,
    response: Response,
) -> views.Teacher:
    """A checkpoint's files as a form: config.json, tokenizer.json, model.safetensors. Nothing of it is ever run."""
    if not isinstance(received, uploading.Form):
        raise Invalid("send the checkpoint's files as multipart/form-data", code="unsupported_media_type")
    uploading.check_parts(received, fields=frozenset({"name"}), files="files")
    files = received.files["files"]
    if len(files) > checkpoints.MOST_FILES:
        raise Invalid.of([Problem("/files", f"more than {checkpoints.MOST_FILES} files", "invalid")])
    name = uploading.check_name(received.fields.get("name", ""))

    with uploading.working_folder(settings) as folder:
        checkpoint = checkpoints.receive([(file.filename or "", file.file) for file in files], folder)
        manifest = write_manifest(folder, kind="teacher")
        id_ = new_id("tc")
        row = Teacher(
            id=id_,
            owner=who.owner,
            name=name or str(checkpoint.config["model_type"]),
            artifact=f"teachers/{id_}",
            sha256=manifest.student_hash,
            bytes=manifest.size,
            config=checkpoint.config,
        )
        with uploading.kept_with(database, store, row):
            store.publish(folder, row.artifact)
            with database.writing() as session:
                session.add(row)
    response.headers["Location"] = f"/teachers/{id_}"
    return _view(row)


@router.get("/teachers", openapi_extra=needs("read"))
def list_teachers(session: ReadSession, who: Caller, page: PageWanted) -> views.Page[views.Teacher]:
    """One's own, newest first; with `admin` everybody's."""
    rows, more = page_of(session, only_own(select(Teacher), Teacher.owner, who), Teacher.id, page)
    return views.Page[views.Teacher](data=[_view(row) for row in rows], has_more=more)


@router.get("/teachers/{teacher_id}", openapi_extra=needs("read"))
def read_teacher(teacher_id: str, session: ReadSession, who: Caller) -> views.Teacher:
    """What it is, and the reference by which a job names it."""
    return _view(find(session, Teacher, teacher_id, who))


@router.delete("/teachers/{teacher_id}", status_code=204, openapi_extra=needs("jobs"))
def delete_teacher(teacher_id: str, session: WriteSession, who: Caller, store: StoreHere) -> None:
    """Refused with `in_use` while a job needs it."""
    row = find(session, Teacher, teacher_id, who)
    uploading.refuse_in_use(session, row.id)
    session.delete(row)
    after_commit(session, uploading.discarding(store, row.artifact))


def _view(row: Teacher) -> views.Teacher:
    return views.Teacher(
        id=row.id,
        reference=f"teacher:{row.id}",
        name=row.name,
        sha256=row.sha256,
        bytes=row.bytes,
        config=row.config,
        created_at=row.created_at,
    )
