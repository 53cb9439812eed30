"""What datasets and teachers share: forms that bring files, a folder to work in, artifacts that live as long as a row.

A form's files are spooled to the disk as they arrive and gone when the request is over, whatever happens. Nothing here
holds a session while a file is read: SQLite has one writer, and a large upload would keep everyone else waiting.
"""

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from fastapi import Request
from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.dependencies import json_of
from app.dependencies import settings as settings_of
from app.uploads.disk import on_disk
from models.artifacts import Store
from models.database import Database
from models.errors import Conflict, Invalid, LimbeckError, Problem, TooLarge
from models.settings import Settings
from models.tables import ENDED, Dataset, Job, Teacher

FORM_SLACK = 1024**2
"""A form is a little larger than its files: names, boundaries, fields."""

_LONGEST_NAME = 200
_LEFT_BEHIND_AFTER = 24 * 3600.0

log = structlog.get_logger("limbeck.app")


# --- what arrives -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """The parts of a multipart form."""

    fields: dict[str, str]
    files: dict[str, list[UploadFile]]


async def receive(request: Request) -> AsyncIterator[Form | dict[str, Any]]:
    """A dependency: the form, or the JSON object, that was sent. Files are closed when the request is over.

    Raises `Invalid` (codes `bad_multipart`, `invalid_json`, `unsupported_media_type`, `upload_cut_off`) or `TooLarge`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match kind:
        case "multipart/form-data":
            form = await _read_form(request)
            try:
                yield _sorted(form)
            finally:
                await form.close()
        case "application/json":
            yield await _read_json(request)
        case _:
            raise Invalid(
                "send the file as multipart/form-data",
                code="unsupported_media_type",
                hint="curl: -F file=@rows.csv; httpx and requests: files={…}",
            )


async def _read_form(request: Request) -> FormData:
    try:
        with on_disk("the upload"):
            return await request.form(max_files=1000, max_fields=32, max_part_size=64 * 1024)
    except ClientDisconnect as error:
        raise Invalid("the upload was cut off", code="upload_cut_off") from error
    except HTTPException as error:
        if error.status_code != 400:
            raise  # the body's limit
        raise Invalid(
            "the body is not a multipart form that can be read", code="bad_multipart", hint=error.detail[:200]
        ) from error


def _sorted(form: FormData) -> Form:
    fields: dict[str, str] = {}
    files: dict[str, list[UploadFile]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(name, []).append(value)
        else:
            fields[name] = value
    return Form(fields, files)


async def _read_json(request: Request) -> dict[str, Any]:
    """The address takes large forms; a JSON body is held in memory and has the limit of any other."""
    limit = settings_of(request).max_body_bytes
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"a JSON body may have {limit:,} bytes")
    document = json_of(bytes(body))
    if not isinstance(document, dict):
        raise Invalid("the body is not a JSON object", code="invalid_json")
    return document


def check_parts(form: Form, *, fields: frozenset[str], files: str) -> None:
    """Raises `Invalid` with every part that is not known, or has no file where one belongs."""
    problems = [
        Problem(f"/{_pointer(name)}", "is not a field of this form", "unknown_field")
        for name in form.fields.keys() - fields - {files}
    ]
    problems += [
        Problem(f"/{_pointer(name)}", "is not a file of this form", "unknown_field")
        for name in form.files.keys() - {files}
    ]
    if files in form.fields:
        problems.append(Problem(f"/{files}", "is text, and not a file: give the part a filename", "missing"))
    elif files not in form.files:
        problems.append(Problem(f"/{files}", "is required", "missing"))
    if problems:
        raise Invalid.of(sorted(problems, key=lambda problem: problem.pointer)[:20])


def check_name(name: str) -> str:
    """The name, without spaces around it. Raises `Invalid`: it comes back in pages and headers."""
    name = name.strip()
    if len(name) > _LONGEST_NAME:
        raise Invalid.of([Problem("/name", f"has more than {_LONGEST_NAME} characters", "invalid")])
    if not name.isprintable():
        raise Invalid.of([Problem("/name", "has characters that cannot be seen", "invalid")])
    return name


def name_of_file(filename: str, otherwise: str) -> str:
    """A name for people, of a file's name without its folders and ending, whatever system it is from."""
    stem = filename.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return "".join(character for character in stem if character.isprintable()).strip()[:_LONGEST_NAME] or otherwise


def _pointer(name: str) -> str:
    return name[:100].replace("~", "~0").replace("/", "~1")


# --- where it is worked on --------------------------------------------------------------------------------------------


@contextmanager
def working_folder(settings: Settings) -> Iterator[Path]:
    """A new folder that is gone afterwards. What a killed process left is removed by a later upload."""
    root = settings.data_dir.resolve() / "uploads"
    with on_disk("the upload"):
        root.mkdir(parents=True, exist_ok=True)
        for left in root.iterdir():
            with suppress(FileNotFoundError):  # another upload has just ended
                if time.time() - left.lstat().st_mtime > _LEFT_BEHIND_AFTER:
                    shutil.rmtree(left, ignore_errors=True)
        working = tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True)
    with working as folder:
        yield Path(folder)


@contextmanager
def kept_with(database: Database, store: Store, row: Dataset | Teacher) -> Iterator[None]:
    """Put the artifact, then the row, inside: where the row does not come to be, the artifact does not stay."""
    try:
        yield
    except BaseException:
        try:
            with database.reading() as session:
                there = session.get(type(row), row.id) is not None
        except Exception:  # perhaps it was committed, and an orphan is better than a row without a file
            log.exception("an artifact may be an orphan", artifact=row.artifact)
        else:
            if not there:
                discard(store, row.artifact)
        raise


def discard(store: Store, artifact: str) -> None:
    """Remove an artifact that no row names any more. A failure is logged: the caller's part is done."""
    try:
        store.delete(artifact)
    except LimbeckError:
        log.exception("an artifact was left behind", artifact=artifact)


def discarding(store: Store, artifact: str) -> Callable[[], None]:
    return lambda: discard(store, artifact)


def refuse_in_use(session: Session, id_: str) -> None:
    """Raises `Conflict` (code `in_use`) while a job that has not ended names `id_`. An id is in no spec by chance."""
    statement = select(Job.id).where(
        Job.status.not_in(ENDED), cast(Job.resolved_spec, Text).contains(id_, autoescape=True)
    )
    job = session.scalar(statement.limit(1))
    if job is not None:
        raise Conflict(
            f"job {job} needs it", code="in_use", hint=f"wait until it has ended, or POST /jobs/{job}/cancel"
        )
