"""The pool and the shelf, without a database and without HTTP."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from app.serving.batching import CallerLeft, Pool
from app.serving.shelf import Pointer, Shelf
from models.answers import Parameters
from models.errors import ArtifactDamaged, Missing, Overloaded, Unavailable
from models.inputs import Input
from models.runtime import Runtime
from tests.app.conftest import eventually
from tests.factories import tiny_rows

TEXTS = tiny_rows(60)[0]


class Slow:
    """A runtime that takes its time: a real one, held back."""

    def __init__(self, runtime: Runtime, seconds: float) -> None:
        self.runtime = runtime
        self.seconds = seconds
        self.asked: list[Input] = []

    def tokenize(self, texts: list[Input]) -> Any:
        self.asked += texts
        if texts == ["boom"]:
            raise ValueError("boom")
        time.sleep(self.seconds)
        return self.runtime.tokenize(texts)

    def answers(self, inputs: Any, encodings: Any) -> Any:
        return self.runtime.answers(inputs, encodings)

    def decode(self, item: Any, encodings: Any, raw: Any, parameters: Any) -> Any:
        return self.runtime.decode(item, encodings, raw, parameters)


@pytest.fixture(scope="module")
def runtime(student_folder: Path) -> Runtime:
    return Runtime.open(student_folder)


@pytest.fixture
def slow(runtime: Runtime) -> Any:
    return Slow(runtime, 0.02)


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(2, limit=10)
    yield made
    made.close()


async def _answer(pool: Pool, runtime: Any, *texts: str, gone: Callable[[], Awaitable[bool]] | None = None) -> Any:
    return await pool.answer(runtime, texts, Parameters(), gone)


class TestPool:
    def test_answers_in_order(self, pool: Pool, runtime: Runtime) -> None:
        answer = asyncio.run(_answer(pool, runtime, *TEXTS))
        assert answer.answers == runtime.predict(TEXTS)
        assert pool.waiting == 0
        assert answer.timing.infer > 0
        assert answer.timing.queue >= 0

    def test_a_large_body_is_spread_over_the_threads(self, pool: Pool, slow: Any) -> None:
        began = time.perf_counter()
        asyncio.run(_answer(pool, slow, *TEXTS[:20]))
        assert time.perf_counter() - began < 20 * 0.02 * 0.8

    def test_a_full_queue_refuses_at_once(self, pool: Pool, slow: Any) -> None:
        async def run() -> None:
            large = asyncio.create_task(_answer(pool, slow, *TEXTS[:20]))
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            with pytest.raises(Overloaded):
                await _answer(pool, slow, "one more")
            assert time.perf_counter() - began < 0.05
            await large
            await _answer(pool, slow, "and now")

        asyncio.run(run())
        assert pool.waiting == 0

    def test_one_text_does_not_wait_for_a_large_body(self, runtime: Runtime) -> None:
        pool, slow = Pool(2, limit=1000), Slow(runtime, 0.02)

        async def run() -> tuple[float, float]:
            began = time.perf_counter()
            large = asyncio.create_task(_answer(pool, slow, *TEXTS))
            await asyncio.sleep(0.01)
            await _answer(pool, slow, "short")
            short = time.perf_counter() - began
            await large
            return short, time.perf_counter() - began

        short, large = asyncio.run(run())
        pool.close()
        assert short < large / 3

    def test_a_caller_who_left_is_dropped(self, pool: Pool, slow: Any) -> None:
        async def gone() -> bool:
            return True

        async def run() -> None:
            with pytest.raises(CallerLeft):
                await _answer(pool, slow, *TEXTS, gone=gone)

        asyncio.run(run())
        assert pool.waiting == 0
        asked = len(slow.asked)
        time.sleep(0.1)
        assert len(slow.asked) <= asked + 2
        assert asked < len(TEXTS)

    def test_a_cancelled_call_is_dropped(self, pool: Pool, slow: Any) -> None:
        async def run() -> None:
            task = asyncio.create_task(_answer(pool, slow, *TEXTS))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(run())
        assert pool.waiting == 0

    def test_a_failure_is_the_callers_and_the_thread_lives(self, pool: Pool, slow: Any) -> None:
        async def run() -> None:
            for _ in range(4):
                with pytest.raises(ValueError, match="boom"):
                    await _answer(pool, slow, "boom")
            await _answer(pool, slow, "fine")

        asyncio.run(run())
        assert pool.waiting == 0


class World:
    """Where deployments point, and what students there are."""

    def __init__(self, **folders: Path) -> None:
        self.folders = folders
        self.pointers: list[Pointer] = []
        self.opened: list[str] = []

    def open(self, student_id: str) -> Runtime:
        self.opened.append(student_id)
        if student_id not in self.folders:
            raise ArtifactDamaged("the student cannot be loaded")
        return Runtime.open(self.folders[student_id])

    def point(self, student_id: str, name: str = "live") -> None:
        version = 1 + max((pointer.version for pointer in self.pointers if pointer.name == name), default=0)
        kept = [pointer for pointer in self.pointers if pointer.name != name]
        self.pointers = [*kept, Pointer(f"dep_{name}", "me", name, student_id, version)]


@pytest.fixture
def world(student_folder: Path, other_folder: Path) -> World:
    return World(one=student_folder, two=other_folder)


def shelf_of(world: World, budget: int = 1024**3, **options: Any) -> Shelf:
    return Shelf(world.open, lambda: world.pointers, budget_bytes=budget, **options)


class TestShelf:
    def test_loads_on_the_first_request_and_once(self, world: World) -> None:
        shelf = shelf_of(world)
        world.point("one")
        assert shelf.at_hand("me", "live") is None
        first = shelf.fetch("me", "live")
        assert shelf.at_hand("me", "live") is first is shelf.fetch("me", "live")
        assert world.opened == ["one"]

    def test_owners_are_apart(self, world: World) -> None:
        shelf = shelf_of(world)
        world.point("one")
        with pytest.raises(Missing):
            shelf.fetch("you", "live")

    def test_the_old_one_serves_until_the_new_one_is_well(self, world: World) -> None:
        shelf = shelf_of(world)
        world.point("one")
        shelf.fetch("me", "live")
        world.point("broken")
        shelf.refresh()
        assert shelf.fetch("me", "live").student_id == "one"
        world.point("two")
        shelf.refresh()
        assert shelf.fetch("me", "live").student_id == "two"

    def test_one_that_is_damaged_is_not_tried_with_every_request(self, world: World) -> None:
        shelf = shelf_of(world)
        world.point("broken")
        for _ in range(5):
            with pytest.raises(Unavailable):
                shelf.fetch("me", "live")
            shelf.refresh()
        assert world.opened == ["broken"]

    def test_an_older_pointer_changes_nothing(self, world: World) -> None:
        shelf = shelf_of(world)
        shelf.point(Pointer("dep", "me", "live", "two", 2))
        shelf.point(Pointer("dep", "me", "live", "one", 1))
        assert shelf.fetch("me", "live").student_id == "two"
        shelf.point(Pointer("made anew", "me", "live", "one", 1))
        assert shelf.fetch("me", "live").student_id == "one"

    @pytest.mark.parametrize("what", ["budget", "no budget"])
    def test_the_least_recently_used_goes(self, world: World, what: Literal["budget", "no budget"]) -> None:
        size = shelf_of(world).load("one").bytes
        shelf = shelf_of(world, budget=2 * size if what == "budget" else 1)
        for name in ("one", "two"):
            world.folders[f"{name} again"] = world.folders[name]
        for name in ("one", "two", "one", "two again"):
            shelf.load(name)
        assert set(shelf.loaded) == ({"one", "two again"} if what == "budget" else {"two again"})

    def test_follows_by_itself_and_preloads(self, world: World) -> None:
        shelf = shelf_of(world, interval=0.05)
        world.point("one")
        shelf.start()
        eventually(lambda: shelf.at_hand("me", "live") is not None)
        world.point("two")
        eventually(lambda: (found := shelf.at_hand("me", "live")) is not None and found.student_id == "two")
        world.pointers = []
        eventually(lambda: shelf.at_hand("me", "live") is None)
        shelf.close()

    def test_a_database_that_is_away_does_not_end_it(self, world: World) -> None:
        away = True

        def pointers() -> list[Pointer]:
            if away:
                raise OSError("away")
            return world.pointers

        shelf = Shelf(world.open, pointers, budget_bytes=1024**3, interval=0.02)
        shelf.start()
        time.sleep(0.1)
        away = False
        world.point("one")
        eventually(lambda: shelf.at_hand("me", "live") is not None)
        shelf.close()
