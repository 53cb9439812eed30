"""What every page is made with: the service's own API, as its reader may use it, and templates.

A page is a client of the API: it asks through the application itself, with the reader's cookie, and sees what the
reader may see. Here are no tables and no rules.
"""

import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import httpx2
from fastapi import Depends, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markupsafe import Markup

from app.dashboard import static, words
from models.errors import LimbeckError

SECURITY_HEADERS: Mapping[str, str] = {
    # The hash is that of an empty text: plotly makes an empty <style> and fills it through the object model.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
        "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}

Json = dict[str, Any]


class Refused(LimbeckError):
    """The API's answer to a page was not a success."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(
            str(problem.get("detail") or "the service could not answer"),
            code=str(problem.get("code") or "internal_error"),
            hint=problem.get("hint"),
        )
        self.status = status


class Api:
    """The service's API, called from within by a page, with the key or the cookie of its reader."""

    def __init__(self, request: Request, client: httpx2.AsyncClient) -> None:
        self._client = client
        names = ("cookie", "authorization", "host")
        self._headers = {name: request.headers[name] for name in names if name in request.headers}

    async def get(self, path: str, **params: Any) -> Any:
        """The JSON at `path`. `params` that are None are left out. Raises `Refused`."""
        return (await self._answer(path, params)).json()

    async def text(self, path: str) -> str:
        return (await self._answer(path, {})).text

    async def find(self, path: str, **params: Any) -> Any | None:
        """As `get`; None where there is nothing, or nothing that this reader may see."""
        try:
            return await self.get(path, **params)
        except Refused as refusal:
            if refusal.status in {403, 404}:
                return None
            raise

    async def _answer(self, path: str, params: Mapping[str, Any]) -> httpx2.Response:
        wanted = {name: value for name, value in params.items() if value is not None}
        response = await self._client.get(path, params=wanted, headers=self._headers)
        if response.is_success:
            return response
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        raise Refused(response.status_code, problem)


async def _api(request: Request) -> AsyncIterator[Api]:
    transport = httpx2.ASGITransport(app=request.app)
    async with httpx2.AsyncClient(transport=transport, base_url=str(request.base_url)) as client:
        yield Api(request, client)


ApiHere = Annotated[Api, Depends(_api, scope="function")]


# --- templates --------------------------------------------------------------------------------------------------------


def _align_by_class(state: StateCore) -> None:
    """A table's columns are aligned by a class: a `style` would be against the pages' policy."""
    for token in state.tokens:
        if str(token.attrs.pop("style", "")).endswith("right"):
            token.attrs["class"] = "num"


_markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
"""HTML in it is shown as text."""
_markdown.core.ruler.push("align_by_class", _align_by_class)


def path_of(value: object) -> str:
    """One part of a path, percent-encoded."""
    return quote(str(value), safe="")


def _to_json(value: object) -> Markup:
    """JSON for a `<script type="application/json">`: no `<` of it can end the element."""
    text = json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return Markup(text.replace("\u2029", "\\u2029"))  # noqa: S704 - the line above has made it harmless


templates = Environment(
    loader=PackageLoader("app", "dashboard/templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.globals.update(static=static.address, plotly_styles=static.styles_of_plotly)
templates.filters.update(
    bytes=words.size,
    count=words.count,
    duration=words.duration,
    number=words.number,
    percent=words.percent,
    points=words.points,
    sentence=words.sentence,
    status=words.status,
    when=words.when,
    ago=words.ago,
    clock=words.clock,
    part=path_of,
    json=_to_json,
    pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    markdown=lambda text: Markup(_markdown.render(text)),  # noqa: S704 - markdown-it escapes what is not Markdown
)


def render(request: Request, template: str, *, status_code: int = 200, **context: Any) -> HTMLResponse:
    """`template` with `context`, and with what the frame around every page shows."""
    principal = getattr(request.state, "principal", None)
    body = templates.get_template(template).render(
        here=request.url.path,
        now=datetime.now(UTC),
        principal=principal,
        may=principal.may if principal is not None else lambda _: False,
        version=request.app.version,
        **context,
    )
    return HTMLResponse(body, status_code=status_code, headers=SECURITY_HEADERS)


# --- routes -----------------------------------------------------------------------------------------------------------


class PageRoute(APIRoute):
    """A route whose errors are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Refused as refusal:
                return render(request, "error.html", status_code=refusal.status, error=refusal)

        return answer
