"""Lists: `{"object": "list", "data": […], "has_more": bool}`, and `?after=<id>` for what follows."""

from collections.abc import AsyncGenerator
from typing import Any

from limbeck.errors import UnexpectedAnswer
from limbeck.objects import Answer, Page, read
from limbeck.transport import Transport, body


async def page(transport: Transport[Any], path: str, kind: type[Answer], **params: Any) -> Page[Answer]:
    """One page. `params` that are None are not sent."""
    given = {name: value for name, value in params.items() if value is not None}
    document = body(await transport.request("GET", path, params=given))
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise UnexpectedAnswer(f"the service did not answer with a list at {path}")
    items = [read(kind, item) for item in document["data"]]
    return Page(data=items, has_more=bool(document.get("has_more")), raw=document)


async def every(transport: Transport[Any], path: str, kind: type[Answer], **params: Any) -> AsyncGenerator[Answer]:
    """The items of all pages, in order. Each must have an `id`."""
    after = None
    while True:
        found = await page(transport, path, kind, after=after, limit=100, **params)
        for item in found:
            yield item
        if not found.has_more or not found.data:
            return
        after = found.raw["data"][-1]["id"]
