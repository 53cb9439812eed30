"""The pages' styles and scripts: files of this package, and plotly's as its package ships it. There is no CDN."""

import gzip
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response, status

from app.security import needs
from models.errors import Missing

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent / "static"
_PLOTLY = "plotly.min.js"
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class StaticFile:
    content: bytes
    media_type: str
    digest: str


@cache
def _names() -> Mapping[str, Path]:
    """By the name in its address: only what is listed here is ever opened."""
    found = {path.name: path for path in _FOLDER.iterdir() if path.is_file()}
    spec = find_spec("plotly")  # found without being imported: importing it takes a second
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        found[_PLOTLY] = Path(place) / "package_data" / _PLOTLY
    return found


@cache
def _file(name: str) -> StaticFile:
    path = _names().get(name)
    if path is None:
        raise Missing("there is nothing at this address")
    content = path.read_bytes()
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    media_type = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
    return StaticFile(content, media_type, sha256(content).hexdigest()[:16])


@cache
def _compressed(name: str) -> bytes:
    return gzip.compress(_file(name).content, 6, mtime=0)


def address(name: str) -> str:
    """Where a file is served; another content has another address, so that browsers may keep it for ever.

    Not so our own scripts: they import one another by their plain names, and a module with two addresses runs twice.
    """
    plain = f"/ui/static/{name}"
    return plain if name.endswith(".js") and name != _PLOTLY else f"{plain}?v={_file(name).digest}"


@cache
def styles_of_plotly() -> tuple[str, ...]:
    """The ids of styles that plotly would write into a page for its maps, which the pages' policy forbids. Where an
    element has the id already, it does not try."""
    return tuple(re.findall(r'document\.getElementById\("([0-9a-f]{64})"\)', _file(_PLOTLY).content.decode()))


@router.get("/ui/static/{name}", openapi_extra=needs("read"))
def read_static(
    name: str,
    v: str | None = None,
    accept_encoding: Annotated[str, Header(max_length=200)] = "",
    if_none_match: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Public: the sign-in page needs it, and there is nothing in it."""
    found = _file(name)
    tag = f'"{found.digest}"'
    headers = {
        "ETag": tag,
        "Vary": "Accept-Encoding",
        "Cache-Control": _FOR_EVER if v == found.digest else "no-cache",
    }
    if if_none_match is not None and tag in if_none_match:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    if "gzip" in accept_encoding:
        return Response(_compressed(name), media_type=found.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(found.content, media_type=found.media_type, headers=headers)
