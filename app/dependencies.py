"""What a route asks for: a session, a page, the store, the settings.

A session is one transaction. It is opened with `scope="function"`, and so committed **before** the answer leaves:
what a caller was told has happened. Async routes (predict, long-polls, event streams) hold no session.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from models.artifacts import Store
from models.database import Database
from models.egress import Egress
from models.errors import Invalid
from models.queue import Doorbell
from models.secrets import Vault
from models.settings import Settings


def settings(request: Request) -> Settings:
    found: Settings = request.app.state.settings
    return found


def database(request: Request) -> Database:
    found: Database = request.app.state.database
    return found


def store(request: Request) -> Store:
    found: Store = request.app.state.store
    return found


def doorbell(request: Request) -> Doorbell:
    found: Doorbell = request.app.state.doorbell
    return found


def vault(request: Request) -> Vault:
    found: Vault = request.app.state.vault
    return found


def egress(request: Request) -> Egress:
    found: Egress = request.app.state.egress
    return found


def json_of(body: bytes) -> Any:
    """A body that a route reads by itself. Raises `Invalid` (code `invalid_json`)."""
    try:
        return json.loads(body)
    except RecursionError:
        raise Invalid("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise Invalid("the body is not JSON", code="invalid_json") from error


def open_reading(request: Request) -> Iterator[Session]:
    with database(request).reading() as session:
        yield session


def open_session(request: Request) -> Iterator[Session]:
    with database(request).writing() as session:
        yield session


@dataclass(frozen=True)
class Paging:
    """Newest first: the rows whose id is below `after`, at most `limit`."""

    after: str | None
    limit: int


def paging(
    after: Annotated[str | None, Query(max_length=64, description="the id of the last row of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Paging:
    return Paging(after, limit)


Row = TypeVar("Row")


def page_of(
    session: Session, statement: Select[Row], id_column: InstrumentedAttribute[str], wanted: Paging
) -> tuple[list[Row], bool]:
    """The rows of the page that is wanted, and whether more follow. Ids sort by time, so the newest are the largest."""
    if wanted.after is not None:
        statement = statement.where(id_column < wanted.after)
    rows = list(session.scalars(statement.order_by(id_column.desc()).limit(wanted.limit + 1)))
    return rows[: wanted.limit], len(rows) > wanted.limit


ReadSession = Annotated[Session, Depends(open_reading, scope="function")]
WriteSession = Annotated[Session, Depends(open_session, scope="function")]
PageWanted = Annotated[Paging, Depends(paging)]
SettingsHere = Annotated[Settings, Depends(settings)]
StoreHere = Annotated[Store, Depends(store)]
DatabaseHere = Annotated[Database, Depends(database)]
DoorbellHere = Annotated[Doorbell, Depends(doorbell)]
VaultHere = Annotated[Vault, Depends(vault)]
EgressHere = Annotated[Egress, Depends(egress)]
