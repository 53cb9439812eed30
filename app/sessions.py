"""Browsers that are signed in. A session stands for the key that it was begun with, and ends when that key does.

Of a token only the SHA-256 is kept. A *link* (`lkl_…`) is good for one sign-in within ten minutes; a *session*
(`lks_…`) lives in a cookie.
"""

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from models.tables import BrowserSession, Key, utc_now

COOKIE = "limbeck_session"
SESSION_LIFE = timedelta(days=7)
LINK_LIFE = timedelta(minutes=10)

Kind = Literal["link", "session"]
_PREFIX: Mapping[Kind, str] = {"link": "lkl_", "session": "lks_"}
_LIFE: Mapping[Kind, timedelta] = {"link": LINK_LIFE, "session": SESSION_LIFE}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Opened(NamedTuple):
    token: str
    expires_at: datetime


def open_one(session: Session, key_id: str, kind: Kind) -> Opened:
    """A new link or session of a key. What has expired is forgotten by the way."""
    now = utc_now()
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= now))
    token = _PREFIX[kind] + secrets.token_urlsafe(32)
    expires_at = now + _LIFE[kind]
    session.add(BrowserSession(token_sha256=digest(token), kind=kind, key_id=key_id, expires_at=expires_at))
    session.flush()
    return Opened(token, expires_at)


def use_link(session: Session, token: str) -> str | None:
    """The key that a link stands for; None if it was used, has expired, or never was. Of two callers one gets it."""
    return session.scalar(
        delete(BrowserSession)
        .where(
            BrowserSession.token_sha256 == digest(token),
            BrowserSession.kind == "link",
            BrowserSession.expires_at > utc_now(),
        )
        .returning(BrowserSession.key_id)
    )


def close(session: Session, token: str) -> None:
    session.execute(delete(BrowserSession).where(BrowserSession.token_sha256 == digest(token)))


def find(session: Session, token_sha256: str) -> tuple[Key, datetime] | None:
    """The key of a session, and when the session ends."""
    found = session.execute(
        select(Key, BrowserSession.expires_at)
        .join(BrowserSession, BrowserSession.key_id == Key.id)
        .where(BrowserSession.token_sha256 == token_sha256, BrowserSession.kind == "session")
    ).one_or_none()
    return None if found is None else (found[0], found[1])


def digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def is_same_origin(method: str, headers: Mapping[str, Any]) -> bool:
    """Whether a request that a browser sends with its cookie comes from a page of ours.

    A cookie goes along with whatever another site makes a browser send, so that what changes something must say where
    it comes from (`Sec-Fetch-Site`, W3C Fetch Metadata; older browsers say `Origin`).
    """
    if method in _SAFE_METHODS:
        return True
    site = headers.get("sec-fetch-site")
    if site is not None:
        return bool(site == "same-origin")
    origin = headers.get("origin")
    return bool(origin) and urlsplit(str(origin)).netloc == headers.get("host")
