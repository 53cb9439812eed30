"""Lists: `{"object": "list", "data": […], "has_more": bool}`, and `?after=<id>` for what follows."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from limbeck.errors import UnexpectedAnswer
from limbeck.objects import Answer, Page, read
from limbeck.transport import Transport, body


class Named(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=Named)


def page(transport: Transport, path: str, kind: type[Answer], **params: Any) -> Page[Answer]:
    """One page. `params` that are None are not sent."""
    given = {name: value for name, value in params.items() if value is not None}
    document = body(transport.request("GET", path, params=given))
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise UnexpectedAnswer(f"the service did not answer with a list at {path}")
    items = [read(kind, item) for item in document["data"]]
    return Page(data=items, has_more=bool(document.get("has_more")), raw=document)


def every(fetch: Callable[[str | None], Page[Item]]) -> Iterator[Item]:
    """The items of all pages, in order."""
    after = None
    while True:
        found = fetch(after)
        yield from found
        if not found.has_more or not found.data:
            return
        after = found.data[-1].id
