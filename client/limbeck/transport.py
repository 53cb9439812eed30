"""Requests and their repetition: what is tried again, when, and what an answer that is not a success becomes.

A 429 or a 503 is tried again after its `Retry-After`, whatever the request: the service has done nothing yet. A
connection that breaks is tried again only where doing a thing twice is doing it once, or where the service never had
the whole of it. No noun of the API is known here, and not whether anybody awaits an answer.
"""

import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic

import httpx2

from limbeck.errors import ApiError, ServiceUnreachable, UnexpectedAnswer
from limbeck.objects import problem
from limbeck.versions import Versions
from limbeck.wires import W_co

MOST_TRIES = 5
LONGEST_PAUSE = 30.0
"""Seconds. A service that asks for a longer pause is not waited for; the caller hears of it in `retry_after`."""

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_AGAIN = frozenset({429, 503})
NOT_RUNNING = "is the service running? start it with: limbeck up"


class Transport(Generic[W_co]):
    """May be shared by threads, or by tasks, as its wire may."""

    def __init__(self, wire: W_co, url: str, *, timeout: float, version: str) -> None:
        self.wire = wire
        self.url = url
        self.timeout = timeout
        self._versions = Versions(version)

    async def close(self) -> None:
        await self.wire.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        idempotent: bool | None = None,
        read_timeout: float | None = None,
        accept: frozenset[int] = frozenset(),
        **content: Any,
    ) -> httpx2.Response:
        """The answer, if it is a success or its status is in `accept`. Raises `ApiError` or `ServiceUnreachable`.

        `idempotent` None: by the method. `content` goes to httpx2 (`json`, `params`, `headers`).
        """
        return await self.send(
            lambda: self.wire.build(method, path, timeout=self._patience(read_timeout), **content),
            idempotent=method in _IDEMPOTENT if idempotent is None else idempotent,
            accept=accept,
        )

    async def send(
        self,
        build: Callable[[], httpx2.Request],
        *,
        idempotent: bool,
        whole: Callable[[], bool] = lambda: True,
        stream: bool = False,
        accept: frozenset[int] = frozenset(),
    ) -> httpx2.Response:
        """As `request`. `build` is called for each try anew: the body of an upload can be read only once.

        `whole`: whether all of the body may have left. Without its end the service has done nothing.
        """
        lost = False  # an earlier try may have had its effect, and only its answer was lost
        for attempt in range(MOST_TRIES):
            last = attempt == MOST_TRIES - 1
            request = build()
            try:
                response = await self.wire.send(request, stream=stream)
            except httpx2.TransportError as error:
                # Nothing listens: two more looks, in case it is only being restarted.
                enough = last or (isinstance(error, httpx2.ConnectError) and attempt >= 2)
                harmless = idempotent or not whole()
                if enough or not harmless or isinstance(error, httpx2.UnsupportedProtocol):
                    raise self._unreachable(error) from error
                lost = lost or not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                await self.wire.sleep(_backoff(attempt))
                continue
            self._versions.heard(response.headers.get("x-limbeck-version"))
            if response.is_success or response.status_code in accept:
                return response
            if lost and request.method == "DELETE" and response.status_code == 404:
                return response  # the try whose answer was lost has deleted it
            if stream:
                await self.wire.drain(response)
            pause = _retry_after(response)
            if response.status_code not in _AGAIN or last or (pause or 0) > LONGEST_PAUSE:
                raise refusal(response)
            await self.wire.sleep(_backoff(attempt) if pause is None else pause)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, read_timeout: float
    ) -> AsyncIterator[httpx2.Response]:
        """A GET whose body the caller reads from `wire`, who meets the connection's errors."""

        def build() -> httpx2.Request:
            return self.wire.build("GET", path, headers=headers, timeout=self._patience(read_timeout))

        response = await self.send(build, idempotent=True, stream=True)
        try:
            yield response
        finally:
            await self.wire.shut(response)

    def _patience(self, read_timeout: float | None) -> httpx2.Timeout:
        return httpx2.Timeout(self.timeout, connect=min(self.timeout, 10.0), read=read_timeout or self.timeout)

    def _unreachable(self, error: httpx2.TransportError) -> ServiceUnreachable:
        refused = isinstance(error, httpx2.ConnectError)
        match error:
            case httpx2.UnsupportedProtocol():
                return ServiceUnreachable(f"{self.url!r} is not an http:// or https:// address")
            case httpx2.ConnectError() | httpx2.ConnectTimeout():
                return ServiceUnreachable(f"nothing answers at {self.url}", hint=NOT_RUNNING, refused=refused)
            case httpx2.TimeoutException():
                return ServiceUnreachable(f"{self.url} did not answer in time")
            case _:
                return ServiceUnreachable(f"the connection to {self.url} broke: {error or type(error).__name__}")


def body(response: httpx2.Response) -> Any:
    """The JSON of an answer. Raises `UnexpectedAnswer`."""
    try:
        return response.json()
    except ValueError as error:
        raise UnexpectedAnswer(
            f"{response.request.url} answered with something that is not JSON",
            hint="is LIMBECK_URL the address of a Limbeck service?",
        ) from error


def refusal(response: httpx2.Response) -> ApiError:
    """The error that an answer stands for, also where it is a proxy's and no problem document."""
    try:
        document = json.loads(response.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    status = response.status_code
    errors = document.get("errors")
    hint = document.get("hint")
    if status == 401:  # the service's own hint is for those who write headers themselves
        hint = "set LIMBECK_API_KEY to a key, or run this where the data folder of `limbeck up` is"
    return ApiError(
        str(
            document.get("detail") or document.get("title") or f"the service answered {status} {response.reason_phrase}"
        ),
        status=status,
        code=str(document.get("code") or f"http_{status}"),
        title=str(document.get("title") or response.reason_phrase),
        hint=hint,
        problems=[problem(item) for item in errors if isinstance(item, dict)] if isinstance(errors, list) else (),
        request_id=document.get("request_id") or response.headers.get("x-request-id"),
        retry_after=_retry_after(response),
    )


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds; the header may be a number or a date (RFC 9110)."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _backoff(attempt: int) -> float:
    """0.2, 0.4, 0.8, 1.6 seconds, each up to a quarter longer, so that many clients do not come back together."""
    return float(0.2 * 2**attempt * (1 + random.random() / 4))  # noqa: S311 - no secret
