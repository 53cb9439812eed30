"""Jobs: submitting one so that it exists once, and following it until it has ended."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Generic

import httpx2

from limbeck import bundles
from limbeck.datasets import Datasets
from limbeck.errors import ApiError, LimbeckError, ServiceUnreachable, WaitTimeout
from limbeck.objects import Event, Job, JobStatus, Page, Point, Validation, problem, read
from limbeck.paging import every, page
from limbeck.saving import fetch
from limbeck.transport import Transport, body
from limbeck.verbs import verb, walk
from limbeck.wires import W_co

PATIENCE = 120.0
"""Seconds without an answer after which following a job gives up: longer than a service takes to restart."""

_POLL = 30.0
_READING_ROWS = 600.0  # the service reads and checks the rows of a bundle before its first byte
_KEEPALIVE = 45.0  # the service sends a comment every 15 s


class Jobs(Generic[W_co]):
    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job spec. Raises `ApiError` with every problem at once.

        The request carries an `Idempotency-Key`, so that it is safe to repeat when a connection breaks. Give your own
        to make a repeat by your program the same job too.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        response = await self._transport.request("POST", "/jobs", json=spec, headers=headers, idempotent=True)
        return read(Job, body(response))

    @verb
    async def bundle(self, job: str | Job, path: Path | str) -> Path:
        """Write the file `path`, a zip archive with all that is needed to train the job's student again."""
        path = Path(path)
        await fetch(self._transport, f"/jobs/{_id(job)}/bundle", path, read_timeout=_READING_ROWS)
        return path

    @verb
    async def rerun(self, job: str | Job | Path, *, idempotency_key: str | None = None) -> Job:
        """Submit a job once more: one that the service has, by its id, or from the `Path` of a bundle.

        Of a bundle the rows are uploaded first, unless the service has a dataset with their SHA-256. The request
        carries an `Idempotency-Key`, as `submit` does.
        """
        if isinstance(job, Path):
            bundle = await self._transport.wire.aside(partial(bundles.read_bundle, job))
            spec = await bundles.spec_on(bundle, Datasets(self._transport), self._transport.wire)
            return await Jobs.submit(self, spec, idempotency_key=idempotency_key)
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        response = await self._transport.request("POST", f"/jobs/{_id(job)}/rerun", headers=headers, idempotent=True)
        return read(Job, body(response))

    @verb
    async def validate(self, spec: Mapping[str, Any]) -> Validation:
        """What would happen with `spec`: its problems, or how it resolves. Creates nothing."""
        try:
            response = await self._transport.request("POST", "/jobs/validate", json=spec, idempotent=True)
        except ApiError as error:
            if error.status != 422:
                raise
            raw = {
                "valid": False,
                "problems": [vars(item) for item in error.problems],
                "detail": error.message,
                "code": error.code,
                "hint": error.hint,
            }
            return Validation(valid=False, problems=list(error.problems), raw=raw)
        document = body(response)
        found = read(Validation, document)
        return Validation(
            valid=found.valid,
            problems=[problem(item) for item in document.get("problems", [])],
            resolved_spec=found.resolved_spec,
            estimates=found.estimates,
            estimates_reason=found.estimates_reason,
            raw=document,
        )

    @verb
    async def get(self, job: str | Job) -> Job:
        return read(Job, body(await self._transport.request("GET", f"/jobs/{_id(job)}")))

    @verb
    async def changed(self, job: Job, *, wait: float = _POLL) -> Job:
        """The job once it differs from `job`, or as it is after `wait` seconds (at most 60)."""
        if job.ended:
            return job
        response = await self._transport.request(
            "GET",
            f"/jobs/{job.id}",
            params={"wait": wait},
            headers={"If-None-Match": f'"{job.version}"'},
            read_timeout=wait + 15,
            accept=frozenset({304}),
        )
        return job if response.status_code == 304 else read(Job, body(response))

    @verb
    async def list(
        self,
        *,
        status: JobStatus | Sequence[JobStatus] | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page[Job]:
        """Newest first."""
        return await page(self._transport, "/jobs", Job, status=status, name=name, after=after, limit=limit)

    @walk
    def all(
        self, *, status: JobStatus | Sequence[JobStatus] | None = None, name: str | None = None
    ) -> AsyncGenerator[Job]:
        """Every job, newest first, page by page."""
        return every(self._transport, "/jobs", Job, status=status, name=name)

    @verb
    async def wait(
        self,
        job: str | Job,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the service is not asked to be quick; its job goes on
        on_update: Callable[[Job], None] | None = None,
    ) -> Job:
        """The job once it has ended, however it did: look at `status`. `on_update` is called with every change seen.

        A restart of the service does not end the wait. Raises `WaitTimeout` after `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        seen = await Jobs.get(self, job)
        if on_update:
            on_update(seen)
        heard = time.monotonic()
        while not seen.ended:
            left = _POLL if until is None else until - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"job {seen.id} is {seen.status} after {timeout:g} s", job=seen)
            try:
                now = await Jobs.changed(self, seen, wait=min(left, _POLL))
            except (ServiceUnreachable, ApiError) as error:
                if not _passing(error) or time.monotonic() - heard > PATIENCE:
                    raise
                await self._transport.wire.sleep(min(1.0, left))
                continue
            heard = time.monotonic()
            if on_update and now.version != seen.version:
                on_update(now)
            seen = now
        return seen

    @walk
    async def events(self, job: str | Job, *, after: int = 0, follow: bool = True) -> AsyncGenerator[Event]:
        """The events of a job in order, from the one after `after`.

        `follow`: go on until the job has ended, over a stream that is taken up where it broke (`Last-Event-ID`), so
        that no event is missed and none comes twice. Otherwise only what there is by now.
        """
        if not follow:
            async for event in self._recorded(_id(job), after):
                yield event
            return
        heard = time.monotonic()
        while True:
            try:
                async with aclosing(self._stream(_id(job), after)) as stream:
                    async for event in stream:
                        after = event.seq
                        heard = time.monotonic()
                        yield event
                heard = time.monotonic()
                # A stream ends when the job has, and also when the service is restarted.
                if (await Jobs.get(self, job)).ended:
                    async for event in self._recorded(_id(job), after):
                        yield event
                    return
            except (httpx2.TransportError, ServiceUnreachable, ApiError) as error:
                if not _passing(error) or time.monotonic() - heard > PATIENCE:
                    raise _told(error) from error
                await self._transport.wire.sleep(1.0)

    @verb
    async def metrics(self, job: str | Job, *, name: str | None = None, points: int | None = None) -> Sequence[Point]:
        """Points ordered by series and step; with `points`, at most so many of each series, evenly spaced."""
        return (await page(self._transport, f"/jobs/{_id(job)}/metrics", Point, name=name, points=points)).data

    @verb
    async def compare(
        self, jobs: Sequence[str | Job], name: str, *, points: int | None = None
    ) -> Mapping[str, Sequence[Point]]:
        """One metric of several jobs (at most 20): the points of each, by its id, in the order given."""
        ids = [_id(job) for job in jobs]
        found = await page(self._transport, "/metrics/jobs", Point, ids=",".join(ids), name=name, points=points)
        return {id_: [point for point in found if point.job_id == id_] for id_ in ids}

    @verb
    async def cancel(self, job: str | Job) -> Job:
        """Ask for its end: at once if it waits, within seconds if it runs. To ask again changes nothing."""
        return read(Job, body(await self._transport.request("POST", f"/jobs/{_id(job)}/cancel", idempotent=True)))

    @verb
    async def pause(self, job: str | Job) -> Job:
        """Ask it to stop for a while: it keeps its state and gives its worker back. To ask again changes nothing."""
        return read(Job, body(await self._transport.request("POST", f"/jobs/{_id(job)}/pause", idempotent=True)))

    @verb
    async def resume(self, job: str | Job) -> Job:
        """Let a paused job go on where it stopped."""
        return read(Job, body(await self._transport.request("POST", f"/jobs/{_id(job)}/resume", idempotent=True)))

    @verb
    async def delete(self, job: str | Job) -> None:
        """Forget a job that has ended. Its student stays."""
        await self._transport.request("DELETE", f"/jobs/{_id(job)}")

    async def _recorded(self, job_id: str, after: int) -> AsyncGenerator[Event]:
        while True:
            found = await page(self._transport, f"/jobs/{job_id}/events", Event, after=after, limit=100)
            for event in found:
                yield event
            if not found.has_more or not found.data:
                return
            after = found.data[-1].seq

    async def _stream(self, job_id: str, after: int) -> AsyncGenerator[Event]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        path = f"/jobs/{job_id}/events"
        async with self._transport.stream(path, headers=headers, read_timeout=_KEEPALIVE) as response:
            async for message in self._transport.wire.messages(response):
                if message.data:
                    yield read(Event, message.json())


def _id(job: str | Job) -> str:
    return job if isinstance(job, str) else job.id


def _passing(error: Exception) -> bool:
    """It may be over in a moment: the service restarts, its database does, or a proxy has nobody to ask."""
    return not isinstance(error, ApiError) or error.status in {429, 502, 503, 504}


def _told(error: Exception) -> LimbeckError:
    if isinstance(error, LimbeckError):
        return error
    return ServiceUnreachable(f"the event stream broke: {error or type(error).__name__}")
