"""API keys. All of it needs `admin`; a secret is shown once, when its key is made."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request, status
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import select

from app import security, views
from app.dependencies import PageWanted, ReadSession, WriteSession, page_of
from app.security import Caller, Permission, needs
from models.database import after_commit
from models.errors import Conflict, Invalid, Problem
from models.tables import Key, new_id, utc_now

router = APIRouter(tags=["keys"])


class NewKey(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", max_length=200)
    owner: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="null: the caller's own")
    scopes: Annotated[list[Permission], Field(min_length=1, max_length=5)]
    expires_at: AwareDatetime | None = None


@router.post("/keys", status_code=status.HTTP_201_CREATED, openapi_extra=needs("admin"))
def make_key(wanted: NewKey, session: WriteSession, who: Caller) -> views.NewKey:
    """A new key. The answer is the only one that ever shows its secret."""
    if wanted.expires_at is not None and wanted.expires_at <= utc_now():
        raise Invalid.of([Problem("/expires_at", "lies in the past", "invalid")])
    scopes = sorted(set(wanted.scopes))
    row, secret = security.make_key(wanted.owner or who.owner, scopes, name=wanted.name, expires_at=wanted.expires_at)
    row.id = new_id("key")
    session.add(row)
    session.flush()
    return views.NewKey(**views.Key.model_validate(row).model_dump(), key=secret)


@router.get("/keys", openapi_extra=needs("admin"))
def list_keys(session: ReadSession, wanted: PageWanted) -> views.Page[views.Key]:
    """All keys, newest first, also those that were revoked. No secrets."""
    rows, has_more = page_of(session, select(Key), Key.id, wanted)
    return views.Page(data=[views.Key.model_validate(row) for row in rows], has_more=has_more)


@router.delete("/keys/{key_id}", status_code=status.HTTP_204_NO_CONTENT, openapi_extra=needs("admin"))
def revoke_key(key_id: str, request: Request, session: WriteSession, who: Caller) -> None:
    """From within a second on it opens nothing. To revoke a revoked key changes nothing."""
    row = security.find(session, Key, key_id, who)
    if row.revoked_at is not None:
        return
    now = utc_now()
    others = session.scalars(select(Key).where(Key.id != row.id, Key.revoked_at.is_(None)))
    if "admin" in row.scopes and not any("admin" in other.scopes and _lives(other.expires_at, now) for other in others):
        raise Conflict("this is the last admin key", code="last_admin_key", hint="make another one first")
    row.revoked_at = now
    keys: security.Keys = request.app.state.keys
    after_commit(session, keys.forget)


def _lives(expires_at: datetime | None, now: datetime) -> bool:
    return expires_at is None or expires_at > now
