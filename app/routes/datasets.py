"""Datasets: uploaded as a file of rows, kept as Parquet."""

from pathlib import Path as FilePath
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
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
from app.uploads.datasets import Limits, import_rows, read_rows
from models.artifacts import Store
from models.database import Database, after_commit
from models.errors import Invalid, NotAvailableYet, Problem
from models.settings import Settings
from models.specs import problems
from models.tables import Dataset, new_id

router = APIRouter(tags=["datasets"])

_FIELDS = frozenset({"name", "encoding", "errors"})
_UNPACKED = 8
"""A Parquet file may hold so many times the bytes that an upload may have."""


class _Source(BaseModel):
    """The other body of POST /datasets."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=200)
    source: str = Field(min_length=1, max_length=400)


_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "string",
                        "contentMediaType": "application/octet-stream",
                        "description": ".csv, .tsv, .jsonl or .parquet",
                    },
                    "name": {"type": "string", "maxLength": 200, "description": "default: the file's name"},
                    "encoding": {"type": "string", "description": "default: UTF-8, or what a byte order mark says"},
                    "errors": {"type": "string", "enum": ["strict", "replace"], "default": "strict"},
                },
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["source"],
                "properties": {"name": {"type": "string"}, "source": {"type": "string"}},
            }
        },
    },
}


@router.post("/datasets", status_code=201, openapi_extra={**needs("jobs"), "requestBody": _BODY}, summary="Upload rows")
def create_dataset(
    received: Annotated[uploading.Form | dict[str, Any], Depends(uploading.receive)],
    who: Caller,
    database: DatabaseHere,
    store: StoreHere,
    settings: SettingsHere,
    response: Response,
) -> views.Dataset:
    """A file of rows, as a form with `file` and `name`: CSV, TSV, JSONL or Parquet. What is wrong names its line."""
    if not isinstance(received, uploading.Form):
        raise _not_yet(received)
    uploading.check_parts(received, fields=_FIELDS, files="file")
    encoding, replace = _text_options(received.fields)
    files = received.files["file"]
    if len(files) > 1:
        raise Invalid.of([Problem("/file", f"{len(files)} files were sent; a dataset is made of one", "invalid")])
    filename = files[0].filename or ""
    name = uploading.check_name(received.fields.get("name", "")) or uploading.name_of_file(filename, "dataset")

    with uploading.working_folder(settings) as folder:
        row = keep_dataset(
            files[0].file,
            filename,
            folder,
            owner=who.owner,
            name=name,
            database=database,
            store=store,
            settings=settings,
            encoding=encoding,
            replace=replace,
        )
    response.headers["Location"] = f"/datasets/{row.id}"
    return views.Dataset.model_validate(row)


@router.get("/datasets", openapi_extra=needs("read"))
def list_datasets(session: ReadSession, who: Caller, page: PageWanted) -> views.Page[views.Dataset]:
    """One's own, newest first; with `admin` everybody's."""
    rows, more = page_of(session, only_own(select(Dataset), Dataset.owner, who), Dataset.id, page)
    return views.Page[views.Dataset](data=[views.Dataset.model_validate(row) for row in rows], has_more=more)


@router.get("/datasets/{dataset_id}", openapi_extra=needs("read"))
def read_dataset(dataset_id: str, session: ReadSession, who: Caller) -> views.Dataset:
    """Its columns with their types and a few values, and how many rows it has."""
    return views.Dataset.model_validate(find(session, Dataset, dataset_id, who))


@router.get("/datasets/{dataset_id}/rows", openapi_extra=needs("read"))
def read_dataset_rows(
    dataset_id: str,
    who: Caller,
    database: DatabaseHere,
    store: StoreHere,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, lt=2**62)] = 0,
) -> views.DatasetRows:
    """Rows as they were read, in the order of the file."""
    with database.reading() as session:
        row = find(session, Dataset, dataset_id, who)
    data, more = read_rows(store.fetch_file(row.artifact), offset=offset, limit=limit)
    return views.DatasetRows(data=data, has_more=more)


@router.delete("/datasets/{dataset_id}", status_code=204, openapi_extra=needs("jobs"))
def delete_dataset(dataset_id: str, session: WriteSession, who: Caller, store: StoreHere) -> None:
    """Refused with `in_use` while a job needs it. A job that has ended can then make no bundle."""
    row = find(session, Dataset, dataset_id, who)
    uploading.refuse_in_use(session, row.id)
    session.delete(row)
    after_commit(session, uploading.discarding(store, row.artifact))


def keep_dataset(
    stream: BinaryIO,
    filename: str,
    folder: FilePath,
    *,
    owner: str,
    name: str,
    source: str | None = None,
    database: Database,
    store: Store,
    settings: Settings,
    encoding: str | None = None,
    replace: bool = False,
) -> Dataset:
    """The rows of `stream`, imported by way of `folder`, as a dataset of `owner`. Raises what `import_rows` does."""
    rows = folder / "rows.parquet"
    imported = import_rows(stream, filename, rows, _limits(settings), encoding=encoding, replace=replace)
    id_ = new_id("ds")
    row = Dataset(
        id=id_,
        owner=owner,
        name=name,
        status="ready",
        source=source,
        columns=imported.columns,
        rows=imported.rows,
        bytes=imported.bytes,
        sha256=imported.sha256,
        artifact=f"datasets/{id_}.parquet",
        warnings=imported.warnings,
    )
    with uploading.kept_with(database, store, row):
        store.put_file(rows, row.artifact)
        with database.writing() as session:
            session.add(row)
    return row


def _limits(settings: Settings) -> Limits:
    return Limits(rows=settings.max_rows, unpacked_bytes=settings.max_upload_bytes * _UNPACKED)


def _text_options(fields: dict[str, str]) -> tuple[str | None, bool]:
    errors = fields.get("errors", "strict")
    if errors not in {"strict", "replace"}:
        raise Invalid.of([Problem("/errors", "is strict or replace", "invalid")])
    return fields.get("encoding") or None, errors == "replace"


def _not_yet(document: dict[str, Any]) -> Invalid:
    try:
        _Source.model_validate(document)
    except ValidationError as error:
        return Invalid.of(problems(error, document))
    message = "importing from a source is not available in this version; upload the file"
    return NotAvailableYet(message, problems=[Problem("/source", message, "not_available_yet")])
