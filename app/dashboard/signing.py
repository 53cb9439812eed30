"""Signing in and out. With a key that the reader pastes, or by a link that somebody with a key has made."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request, status
from fastapi.responses import RedirectResponse

from app import sessions, views
from app.dashboard.pages import PageRoute, render
from app.dependencies import DatabaseHere, WriteSession
from app.security import Caller, Keys, needs
from models.database import Database
from models.errors import Unauthenticated
from models.tables import Key, utc_now

router = APIRouter(tags=["pages"])
pages = APIRouter(include_in_schema=False, route_class=PageRoute)

HOME = "/ui/"
_USED = "This link was used already, or its ten minutes are over. Make another one with: limbeck open"


class SignInLink(views.View):
    object: Literal["sign_in_link"] = "sign_in_link"
    path: str
    """To open in a browser, once."""
    expires_at: str


@router.post("/ui/links", status_code=status.HTTP_201_CREATED, openapi_extra=needs("read"))
def make_link(session: WriteSession, who: Caller) -> SignInLink:
    """A link that signs one browser in with this key, once, within ten minutes."""
    made = sessions.open_one(session, who.key_id, "link")
    return SignInLink(path=f"/ui/sign-in?token={made.token}", expires_at=made.expires_at.isoformat())


@pages.get("/", openapi_extra=needs("read"))
def start() -> RedirectResponse:
    return RedirectResponse(HOME, status_code=status.HTTP_307_TEMPORARY_REDIRECT)


@pages.get("/ui/sign-in", openapi_extra=needs("read"), response_model=None)
def show_sign_in(
    request: Request,
    database: DatabaseHere,
    token: Annotated[str | None, Query(max_length=200)] = None,
    next_: Annotated[str, Query(alias="next", max_length=2000)] = HOME,
) -> object:
    """The form; with `?token=` of a link the browser is signed in at once."""
    if token is None:
        return render(request, "sign_in.html", next=_local(next_), problem=None)
    with database.writing() as session:
        key_id = sessions.use_link(session, token)
        key = session.get(Key, key_id) if key_id is not None else None
        alive = key is not None and key.revoked_at is None and (key.expires_at is None or key.expires_at > utc_now())
    if key_id is None or not alive:
        return render(request, "sign_in.html", status_code=401, next=HOME, problem=_USED)
    return _signed_in(request, database, key_id, _local(next_))


@pages.post("/ui/sign-in", openapi_extra=needs("read"), response_model=None)
async def sign_in(
    request: Request,
    database: DatabaseHere,
    key: Annotated[str, Form(max_length=200)],
    next_: Annotated[str, Form(alias="next", max_length=2000)] = HOME,
) -> object:
    if not sessions.is_same_origin("POST", request.headers):
        return render(request, "sign_in.html", status_code=403, next=HOME, problem="This came from another site.")
    keys: Keys = request.app.state.keys
    try:
        principal = await keys.identify(key.strip())
    except Unauthenticated:
        problem = "This is not a valid key. It begins with lk_ and has 62 characters."
        return render(request, "sign_in.html", status_code=401, next=_local(next_), problem=problem)
    if not principal.may("read"):
        problem = "This key may not read: pages need the scope read."
        return render(request, "sign_in.html", status_code=403, next=_local(next_), problem=problem)
    return _signed_in(request, database, principal.key_id, _local(next_))


@pages.post("/ui/sign-out", openapi_extra=needs("read"))
def sign_out(request: Request, session: WriteSession) -> RedirectResponse:
    token = request.cookies.get(sessions.COOKIE)
    if token:
        sessions.close(session, token)
    keys: Keys = request.app.state.keys
    keys.forget()
    response = RedirectResponse("/ui/sign-in", status_code=status.HTTP_303_SEE_OTHER)
    response.delete_cookie(sessions.COOKIE, path="/")
    return response


def _signed_in(request: Request, database: Database, key_id: str, target: str) -> RedirectResponse:
    with database.writing() as session:
        made = sessions.open_one(session, key_id, "session")
    response = RedirectResponse(target, status_code=status.HTTP_303_SEE_OTHER)
    response.set_cookie(
        sessions.COOKIE,
        made.token,
        max_age=int(sessions.SESSION_LIFE.total_seconds()),
        path="/",
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


def _local(target: str) -> str:
    """A page of ours, and nothing else: no other host can be named by it."""
    safe = target.startswith(HOME) and not any(letter in target for letter in "\\\r\n\t") and "//" not in target
    return target if safe else HOME
