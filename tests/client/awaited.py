"""`AsyncClient` called as `Client` is, so that one set of tests is for both."""

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast

from anyio.from_thread import BlockingPortal

from limbeck import AsyncClient, Client


@contextmanager
def awaited(portal: BlockingPortal, url: str, key: str, *, timeout: float = 60.0) -> Iterator[Client]:
    """A client whose every verb is awaited on the event loop of `portal`."""
    client = AsyncClient(url, key, timeout=timeout)
    try:
        yield cast("Client", _Awaited(portal, client))
    finally:
        portal.call(client.close)


class _Awaited:
    def __init__(self, portal: BlockingPortal, noun: Any) -> None:
        self._portal = portal
        self._noun = noun

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._noun, name)
        if not callable(found):
            return found if isinstance(found, str) else _Awaited(self._portal, found)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = found(*args, **kwargs)
            if inspect.isasyncgen(result):
                return self._each(result)
            assert inspect.iscoroutine(result), f"{name} cannot be awaited"
            return self._portal.call(lambda: result)

        return call

    def _each(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        while True:
            try:
                yield self._portal.call(anext, items)
            except StopAsyncIteration:
                return
