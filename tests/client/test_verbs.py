"""One definition, two forms: what the descriptors make of a verb, and what type checkers know of it."""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import BlockingPortal

import limbeck
from limbeck import ApiError, AsyncClient, Client
from limbeck.client import Service as Nouns
from limbeck.verbs import Verb, Walk
from limbeck.wires import finish
from tests.client.conftest import Service
from tests.client.scripts import Script

JOB = {"id": "job_1", "name": "", "status": "queued", "created_at": "2026-11-24T00:00:00Z", "version": 1}


def test_every_public_verb_is_in_both_forms(script: Script) -> None:
    """There is no method of a noun that only one of the clients could call."""
    with Client(script.url, "k") as client:
        nouns = [noun for noun in vars(client).values() if type(noun).__module__.startswith("limbeck.")]
        for kind in {Nouns, *map(type, nouns)} - {type(client._transport)}:
            public = {name: made for name, made in vars(kind).items() if not name.startswith("_")}
            assert all(isinstance(made, Verb | Walk) for made in public.values()), kind


def test_help_is_of_the_verb(script: Script) -> None:
    with Client(script.url, "k") as client:
        assert client.jobs.submit.__name__ == "submit"
        assert "Idempotency-Key" in (client.jobs.submit.__doc__ or "")
        assert list(inspect.signature(client.jobs.submit).parameters) == ["spec", "idempotency_key"]


def test_a_walk_that_is_left_closes_its_stream(script: Script) -> None:
    script.answers = [(200, {}, {"object": "list", "data": [JOB, JOB], "has_more": True})]
    with Client(script.url, "k") as client:
        jobs = client.jobs.all()
        assert next(jobs).id == "job_1"
        jobs.close()
        assert len(script.seen) == 1


def test_a_coroutine_that_waits_is_no_blocking_verb() -> None:
    class Waiting:
        def __await__(self) -> Iterator[None]:
            yield

    with pytest.raises(RuntimeError, match="a blocking client has none"):
        finish(Waiting())


def test_a_blocking_client_inside_an_event_loop(script: Script) -> None:
    """As in a notebook."""
    script.answers = [(200, {}, {"object": "list", "data": [JOB], "has_more": False})]

    async def cell() -> list[str]:
        with Client(script.url, "k") as client:
            return [job.id for job in client.jobs.all()]

    assert anyio.run(cell) == ["job_1"]


def test_many_at_once_on_one_loop(service: Service, key: str, portal: BlockingPortal) -> None:
    async def ask() -> list[str]:
        async with AsyncClient(service.url, key) as client, anyio.create_task_group() as group:
            said: list[str] = []

            async def one() -> None:
                said.append((await client.ready()).status)

            for _ in range(8):
                group.start_soon(one)
        return said

    assert portal.call(ask) == ["ready"] * 8


def test_an_error_of_one_of_many_is_raised_alone(script: Script, portal: BlockingPortal) -> None:
    script.answers = [(422, {}, {"code": "invalid", "detail": "no"})]

    async def ask() -> None:
        async with AsyncClient(script.url, "k") as client:
            await client.predict("x", ["a"] * 3000)

    with pytest.raises(ApiError, match="no"):
        portal.call(ask)


TYPED = """
from collections.abc import AsyncIterator, Iterator
from typing import assert_type
from limbeck import AsyncClient, Client
from limbeck.objects import Event, Job, Page

def blocking(client: Client) -> None:
    assert_type(client.jobs.get("x"), Job)
    assert_type(client.jobs.list(name="x"), Page[Job])
    assert_type(client.jobs.events("x", after=3), Iterator[Event])
    client.jobs.get(3)  # type: ignore[arg-type]
    client.jobs.list(nmae="x")  # type: ignore[call-arg]

async def awaited(client: AsyncClient) -> None:
    assert_type(await client.jobs.get("x"), Job)
    assert_type(await client.jobs.list(name="x"), Page[Job])
    assert_type(client.jobs.events("x", after=3), AsyncIterator[Event])
    await client.jobs.get(3)  # type: ignore[arg-type]
    client.jobs.get("x")  # type: ignore[unused-coroutine]
"""


@pytest.mark.long
def test_type_checkers_know_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "typed.py"
    path.write_text(TYPED)
    options = ["--strict", "--warn-unused-ignores", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(path)],
        env={**os.environ, "MYPYPATH": str(Path(limbeck.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
