"""Who calls, and what they may do. Default deny, decided before the body is read.

A key is `lk_<8>_<43>_<6>`: a public part by which its row is found, 256 random bits in base 62, and a checksum over
both, so that a mistyped or invented key costs no query. Only its SHA-256 is kept. Its `owner` is whose rows it works
with; `admin` sees all.

Every route declares the scope that it needs: `openapi_extra=needs("jobs")`. `Rules.of` walks the application when it is
made and refuses one with a route that declares nothing and is not in `PUBLIC`.
"""

import hmac
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from re import Pattern
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.routing import iter_route_contexts
from sqlalchemy import Select, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session
from starlette._utils import get_route_path
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from app import sessions
from models.database import Database
from models.errors import Forbidden, Missing, TooLarge, Unauthenticated
from models.tables import Key, utc_now

Permission = Literal["read", "jobs", "deploy", "predict", "admin"]
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)

PUBLIC: frozenset[str] = frozenset(
    {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/ui/sign-in", "/ui/static/{name}"}
)
"""All that is answered without a key: probes, the way to the sign-in page, and what that page looks like."""

PAGES = "/ui/"

_BUILT_IN: Mapping[str, Permission] = {"/openapi.json": "read"}
_DECLARATION = "x-limbeck-scope"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FRESH_SECONDS = 0.9
_MOST_REMEMBERED = 10_000


def needs(permission: Permission) -> dict[str, Any]:
    """A route's declaration, for its `openapi_extra`. It is in the OpenAPI document too."""
    return {_DECLARATION: permission, "security": [{"key": []}]}


# --- keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Principal:
    """Whoever holds the key of this request."""

    key_id: str
    owner: str
    permissions: frozenset[str]
    expires_at: datetime | None = None

    @property
    def is_admin(self) -> bool:
        return "admin" in self.permissions

    def may(self, permission: Permission) -> bool:
        return self.is_admin or permission in self.permissions


def make_key(
    owner: str, permissions: Sequence[str], *, name: str = "", expires_at: datetime | None = None
) -> tuple[Key, str]:
    """A row to add, and the secret, which nobody can find out again."""
    public_id = _random(8)
    body = f"lk_{public_id}_{_random(43)}"
    secret = f"{body}_{_checksum(body)}"
    row = Key(
        owner=owner,
        name=name,
        scopes=list(permissions),
        public_id=public_id,
        secret_sha256=sha256(secret.encode()).hexdigest(),
        expires_at=expires_at,
    )
    return row, secret


def public_part(secret: str) -> str | None:
    """The public part of a well-formed key; None for anything else."""
    body, _, checksum = secret.rpartition("_")
    parts = body.split("_")
    if len(secret) != 62 or not secret.isascii() or len(parts) != 3 or parts[0] != "lk" or len(parts[1]) != 8:
        return None
    return parts[1] if hmac.compare_digest(checksum, _checksum(body)) else None


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    return "".join(_BASE62[number // 62**power % 62] for power in range(5, -1, -1))


class Keys:
    """Verifies keys against the database, and remembers the answer for less than a second: a key is revoked by then."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Principal]] = {}
        self._asking: dict[str, Future[Principal]] = {}
        self._used: dict[str, datetime] = {}

    async def identify(self, secret: str) -> Principal:
        """Raises `Unauthenticated`; one sentence for every reason, so that nobody learns which keys exist."""
        public_id = public_part(secret)
        if public_id is None:
            raise _unknown()
        digest = sha256(secret.encode()).hexdigest()
        known = self._known.get(digest)
        if known is None or known[0] < time.monotonic():
            principal = await run_in_threadpool(self._ask, digest, lambda: self._look_up(public_id, digest))
        else:
            principal = known[1]
        return self._noted(principal)

    async def identify_browser(self, token: str) -> Principal:
        """Whom the cookie of a signed-in browser stands for. Raises `Unauthenticated`."""
        digest = sessions.digest(token)
        known = self._known.get(digest)
        if known is None or known[0] < time.monotonic():
            principal = await run_in_threadpool(self._ask, digest, lambda: self._look_up_browser(digest))
        else:
            principal = known[1]
        return self._noted(principal)

    def _noted(self, principal: Principal) -> Principal:
        if principal.expires_at is not None and principal.expires_at <= utc_now():
            raise _unknown()
        self._used[principal.key_id] = utc_now()
        return principal

    def forget(self) -> None:
        """Ask the database again from now on: this process has just changed a key."""
        with self._lock:
            self._known.clear()

    def note_use(self) -> None:
        """Write down when keys were used last. Called now and then, off the path of requests."""
        with self._lock:
            used, self._used = self._used, {}
        if used:
            with self._database.writing() as session:
                for key_id, at in used.items():
                    session.execute(update(Key).where(Key.id == key_id).values(last_used_at=at))

    def _ask(self, digest: str, look_up: Callable[[], Principal]) -> Principal:
        """Of many requests that wait for one key, one asks."""
        with self._lock:
            asked = self._asking.get(digest)
            mine: Future[Principal] | None = None
            if asked is None:
                mine = self._asking[digest] = Future()
        if asked is not None:
            return asked.result()
        assert mine is not None  # noqa: S101 - for the type checker
        try:
            until = time.monotonic() + _FRESH_SECONDS
            principal = look_up()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            with self._lock:
                if len(self._known) >= _MOST_REMEMBERED:
                    self._known.clear()
                self._known[digest] = (until, principal)
            mine.set_result(principal)
            return principal
        finally:
            with self._lock:
                self._asking.pop(digest, None)

    def _look_up(self, public_id: str, digest: str) -> Principal:
        with self._database.reading() as session:
            row = session.scalar(select(Key).where(Key.public_id == public_id))
        if row is None or not hmac.compare_digest(row.secret_sha256, digest) or row.revoked_at is not None:
            raise _unknown()
        return Principal(row.id, row.owner, frozenset(row.scopes), row.expires_at)

    def _look_up_browser(self, digest: str) -> Principal:
        with self._database.reading() as session:
            found = sessions.find(session, digest)
        if found is None or found[0].revoked_at is not None:
            raise _unknown()
        key, ends = found
        expires_at = ends if key.expires_at is None else min(ends, key.expires_at)
        return Principal(key.id, key.owner, frozenset(key.scopes), expires_at)


def _unknown() -> Unauthenticated:
    return Unauthenticated(
        "this needs a valid key",
        hint="send `Authorization: Bearer lk_…`; the first key is in the data folder's admin.key",
    )


# --- rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One route: what it needs, and how large a body it takes."""

    path: str
    pattern: Pattern[str]
    methods: frozenset[str]
    permission: Permission | None
    """None: public."""
    max_body_bytes: int


@dataclass(frozen=True)
class Rules:
    all: tuple[Rule, ...]

    @classmethod
    def of(cls, app: FastAPI, *, max_body_bytes: int) -> "Rules":
        """Raises `RuntimeError`, which stops the process from starting, if a route declares no scope."""
        rules = []
        for context in iter_route_contexts(app.routes):
            path, methods = context.path, context.methods
            if not path or not methods:
                raise RuntimeError(
                    f"{path or context.route!r} is a mount or a socket; only routes with methods are guarded"
                )
            permission = (getattr(context, "openapi_extra", None) or {}).get(_DECLARATION, _BUILT_IN.get(path))
            if path in PUBLIC:
                permission = None
            elif permission not in PERMISSIONS:
                raise RuntimeError(f"{path} declares no scope: give it openapi_extra=needs(…)")
            limit = getattr(context, "max_body_size", None)
            rules.append(
                Rule(
                    path,
                    compile_path(path)[0],
                    frozenset(methods),
                    permission,
                    max_body_bytes if limit is None else limit,
                )
            )
        return cls(tuple(rules))

    def find(self, method: str, path: str) -> Rule | None:
        """The route that will answer, by the router's own order; None where nothing will."""
        return next((rule for rule in self.all if method in rule.methods and rule.pattern.match(path)), None)


class Guard:
    """The middleware that lets a request through to its route, or not. It never reads the body."""

    def __init__(self, app: ASGIApp, keys: Keys, rules: Rules) -> None:
        self.app = app
        self.keys = keys
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        rule = self.rules.find(scope["method"], get_route_path(scope))
        if rule is None or rule.permission is not None:
            try:
                principal = await self._identify(scope)
            except Unauthenticated:
                if not _is_looking_at_a_page(scope):
                    raise
                await _to_sign_in(scope)(scope, receive, send)
                return
            if rule is not None and rule.permission is not None and not principal.may(rule.permission):
                raise Forbidden(
                    f"this key lacks the scope {rule.permission!r}",
                    hint="an admin makes keys with other scopes: POST /keys",
                )
            scope.setdefault("state", {})["principal"] = principal
        if rule is not None:
            _refuse_large(scope, rule.max_body_bytes)
        await self.app(scope, receive, send)

    async def _identify(self, scope: Scope) -> Principal:
        """By the key in the header; without one, by the cookie of a browser that is signed in."""
        headers = Headers(scope=scope)
        given = headers.get("authorization")
        if given is None:
            token = cookie_parser(headers.get("cookie", "")).get(sessions.COOKIE)
            if token:
                principal = await self.keys.identify_browser(token)
                if not sessions.is_same_origin(scope["method"], headers):
                    raise Forbidden(
                        "another site sent this with your cookie",
                        code="cross_site",
                        hint="programs send `Authorization: Bearer lk_…` instead of a cookie",
                    )
                return principal
        kind, _, secret = (given or "").partition(" ")
        return await self.keys.identify(secret.strip() if kind.lower() == "bearer" else "")


def _is_looking_at_a_page(scope: Scope) -> bool:
    return scope["method"] == "GET" and get_route_path(scope).startswith(PAGES)


def _to_sign_in(scope: Scope) -> RedirectResponse:
    query = scope["query_string"].decode("ascii", "replace")
    wanted = quote(get_route_path(scope) + (f"?{query}" if query else ""), safe="/")
    return RedirectResponse(f"{PAGES}sign-in?next={wanted}", status_code=303)


def _refuse_large(scope: Scope, limit: int) -> None:
    """A body that says that it is too large is refused here; one that does not say is cut by the route's own limit."""
    length = Headers(scope=scope).get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limit:
        raise TooLarge(f"a body of {length[:20]} bytes is larger than the {limit} that this address takes")


# --- for routes -------------------------------------------------------------------------------------------------------


def caller(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(caller)]


class Owned(Protocol):
    """A table whose rows belong to somebody."""

    id: Any
    owner: Any


Row = TypeVar("Row", bound=Owned)


def find(session: Session, table: type[Row], id_: str, who: Principal) -> Row:
    """The row, if it is the caller's (or the caller is an admin). Raises `Missing`: someone else's is absent too."""
    row = session.get(table, id_)
    if row is None or not (who.is_admin or row.owner == who.owner):
        raise Missing(f"there is no {table.__name__.lower()} {id_[:64]!r}")
    return row


Statement = TypeVar("Statement", bound=Select[*tuple[Any, ...]])


def only_own(statement: Statement, owner: InstrumentedAttribute[str], who: Principal) -> Statement:
    """`statement`, narrowed to what the caller may see."""
    return statement if who.is_admin else statement.where(owner == who.owner)
