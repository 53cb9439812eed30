"""The two ways to reach a service: `Blocking`, which holds its thread until there is an answer, and `Concurrent`.

All that they differ in stands here. What is written above them is written once, as coroutines. Those of `Blocking`
never suspend: `finish` runs one to its end without an event loop, also in a thread that has one.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import httpx2

from limbeck.address import is_loopback
from limbeck.errors import UnexpectedAnswer

T = TypeVar("T")
CHUNK = 1 << 18


class Wire(Protocol):
    """A pool of connections to one service, and the passing of time."""

    def build(self, method: str, path: str, **content: Any) -> httpx2.Request: ...

    async def send(self, request: httpx2.Request, *, stream: bool) -> httpx2.Response: ...

    async def drain(self, response: httpx2.Response) -> None:
        """Read what is left of a stream's body, and close it."""

    async def shut(self, response: httpx2.Response) -> None: ...

    def chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]: ...

    def messages(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent]: ...

    async def sleep(self, seconds: float) -> None: ...

    async def aside(self, function: Callable[[], T]) -> T:
        """What `function` returns, which reads or writes files and must not hold up an event loop."""

    async def each(self, calls: Sequence[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
        """The results of all calls, in order, of which `at_once` are under way. The first error ends the others."""

    async def close(self) -> None: ...


class Blocking:
    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout, trust_env=_may_be_proxied(url))

    def build(self, method: str, path: str, **content: Any) -> httpx2.Request:
        return self._http.build_request(method, path, **content)

    async def send(self, request: httpx2.Request, *, stream: bool) -> httpx2.Response:
        return self._http.send(request, stream=stream)

    async def drain(self, response: httpx2.Response) -> None:
        response.read()
        response.close()

    async def shut(self, response: httpx2.Response) -> None:
        response.close()

    async def chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        for chunk in response.iter_bytes(CHUNK):
            yield chunk

    async def messages(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent]:
        for message in httpx2.EventSource(response):
            yield message

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop to hold up

    async def aside(self, function: Callable[[], T]) -> T:
        return function()

    async def each(self, calls: Sequence[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
        if len(calls) == 1:
            return [await calls[0]()]

        def one(call: Callable[[], Awaitable[T]]) -> T:
            return finish(call())

        with ThreadPoolExecutor(at_once, thread_name_prefix="limbeck") as pool:
            pending = [pool.submit(one, call) for call in calls]
            try:
                return [done.result() for done in pending]
            finally:
                for waiting in pending:
                    waiting.cancel()

    async def close(self) -> None:
        self._http.close()


class Concurrent:
    """For asyncio, and for trio."""

    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        self._http = httpx2.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=_may_be_proxied(url))

    def build(self, method: str, path: str, **content: Any) -> httpx2.Request:
        return self._http.build_request(method, path, **content)

    async def send(self, request: httpx2.Request, *, stream: bool) -> httpx2.Response:
        return await self._http.send(request, stream=stream)

    async def drain(self, response: httpx2.Response) -> None:
        await response.aread()
        await response.aclose()

    async def shut(self, response: httpx2.Response) -> None:
        await response.aclose()

    async def chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        async for chunk in response.aiter_bytes(CHUNK):
            yield chunk

    async def messages(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent]:
        async for message in httpx2.EventSource(response):
            yield message

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def aside(self, function: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(function)

    async def each(self, calls: Sequence[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
        results: dict[int, T] = {}
        errors: list[Exception] = []
        limiter = anyio.CapacityLimiter(at_once)
        async with anyio.create_task_group() as group:

            async def one(place: int) -> None:
                async with limiter:
                    try:
                        results[place] = await calls[place]()
                    except Exception as error:  # noqa: BLE001 - it is raised below, alone and not in a group
                        errors.append(error)
                        group.cancel_scope.cancel()

            for place in range(len(calls)):
                group.start_soon(one, place)
        if errors:
            raise errors[0]
        return [results[place] for place in range(len(calls))]

    async def close(self) -> None:
        await self._http.aclose()


W_co = TypeVar("W_co", bound=Wire, covariant=True)
"""Which of the two a client has; it decides whether its verbs are awaited."""


def finish(awaitable: Awaitable[T]) -> T:
    """The result of a coroutine over `Blocking`."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("this waits for an event loop, and a blocking client has none")


def finish_each(items: AsyncGenerator[T]) -> Iterator[T]:
    """The items of an asynchronous generator over `Blocking`, as they come."""
    try:
        while True:
            try:
                item = finish(anext(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        finish(items.aclose())


def connect(
    kind: Callable[[str, dict[str, str], float], T], url: str, key: str | None, timeout: float, agent: str
) -> T:
    """A wire of this kind, which sends the key. Raises `UnexpectedAnswer` where neither can be sent."""
    headers = {"User-Agent": agent}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        return kind(url, headers, timeout)
    except (httpx2.InvalidURL, UnicodeEncodeError) as error:
        raise UnexpectedAnswer(f"{url!r} with this key cannot be called: {error}") from error


def _may_be_proxied(url: str) -> bool:
    """This machine is never reached by way of a proxy, whatever the environment says."""
    return not is_loopback(httpx2.URL(url).host)
