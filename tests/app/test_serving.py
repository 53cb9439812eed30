"""The pool and the shelf, without a database and without HTTP."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from app.serving.batching import CallerLeft, Pool
from app.serving.shelf import Loaded, Pointer, Shelf
from models.answers import Parameters
from models.errors import ArtifactDamaged, Missing, Overloaded, Unavailable
from models.inputs import Input
from models.runtime import Runtime
from models.specs import Canary, Fallback, Traffic
from tests.app.conftest import eventually
from tests.factories import tiny_rows

TEXTS = tiny_rows(60)[0]


class Slow:
    """A runtime that takes its time: a real one, held back."""

    def __init__(self, runtime: Runtime, seconds: float) -> None:
        self.runtime = runtime
        self.seconds = seconds
        self.asked: list[Input] = []
        self.now = 0
        self.most_at_once = 0
        self.lock = threading.Lock()

    def tokenize(self, texts: list[Input]) -> Any:
        self.asked += texts
        if texts == ["boom"]:
            raise ValueError("boom")
        with self.lock:
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
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


class TestBackground:
    """What no caller waits for."""

    def test_the_same_answers(self, pool: Pool, runtime: Runtime) -> None:
        answer = asyncio.run(pool.answer(runtime, TEXTS, Parameters(), background=True))
        assert answer.answers == runtime.predict(TEXTS)

    @pytest.mark.parametrize("threads", [1, 3])
    def test_it_leaves_a_thread_free(self, runtime: Runtime, threads: int) -> None:
        pool, slow = Pool(threads, limit=100), Slow(runtime, 0.02)

        async def run() -> float:
            began = time.perf_counter()
            await pool.answer(slow, TEXTS[:12], Parameters(), background=True)  # type: ignore[arg-type]
            return time.perf_counter() - began

        assert asyncio.run(run()) > 12 * 0.02 / max(1, threads - 1)
        pool.close()
        assert slow.most_at_once == max(1, threads - 1)

    def test_callers_come_first(self, runtime: Runtime) -> None:
        pool, slow = Pool(2, limit=100), Slow(runtime, 0.02)

        async def run() -> list[Input]:
            copies = [asyncio.create_task(_copy(pool, slow, f"copy {number}")) for number in range(20)]
            await asyncio.sleep(0.03)
            await _answer(pool, slow, *(f"caller {number}" for number in range(10)))
            so_far = list(slow.asked)
            assert pool.waiting == 0
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            return so_far

        asked = asyncio.run(run())
        pool.close()
        callers = [place for place, text in enumerate(asked) if str(text).startswith("caller")]
        assert len(callers) == 10
        assert callers == list(range(callers[0], callers[0] + 10))

    def test_it_takes_no_room_from_callers(self, slow: Any) -> None:
        pool = Pool(2, limit=1)

        async def run() -> None:
            copy = asyncio.create_task(_copy(pool, slow, *TEXTS[:10]))
            await asyncio.sleep(0.01)
            await _answer(pool, slow, "a caller")
            assert not copy.done()
            await copy

        asyncio.run(run())
        pool.close()

    def test_a_pool_that_closes_leaves_it(self, slow: Any) -> None:
        pool = Pool(2, limit=10)

        async def run() -> None:
            copy = asyncio.create_task(_copy(pool, slow, *TEXTS))
            await asyncio.sleep(0.03)
            copy.cancel()
            await asyncio.gather(copy, return_exceptions=True)

        asyncio.run(run())
        pool.close()
        assert len(slow.asked) < 10


async def _copy(pool: Pool, runtime: Any, *texts: str) -> Any:
    return await pool.answer(runtime, texts, Parameters(), background=True)


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

    def point(self, student_id: str, name: str = "live", **traffic: Any) -> None:
        version = 1 + max((pointer.version for pointer in self.pointers if pointer.name == name), default=0)
        kept = [pointer for pointer in self.pointers if pointer.name != name]
        self.pointers = [*kept, Pointer(f"dep_{name}", "me", name, student_id, version, Traffic(**traffic))]


@pytest.fixture
def world(student_folder: Path, other_folder: Path) -> World:
    return World(one=student_folder, two=other_folder)


def answering(shelf: Shelf, owner: str = "me") -> Loaded:
    """The student that answers for the deployment `live`."""
    return shelf.fetch(shelf.find(owner, "live").student_id)


def at_hand(shelf: Shelf) -> str | None:
    """The id of the student that answers for `live`, if it is in memory."""
    pointer = shelf.pointer("me", "live")
    return None if pointer is None or shelf.at_hand(pointer.student_id) is None else pointer.student_id


def shelf_of(world: World, budget: int = 1024**3, **options: Any) -> Shelf:
    return Shelf(world.open, lambda: world.pointers, budget_bytes=budget, **options)


class TestShelf:
    def test_loads_on_the_first_request_and_once(self, world: World) -> None:
        shelf = shelf_of(world)
        world.point("one")
        assert at_hand(shelf) is None
        first = answering(shelf)
        assert shelf.at_hand("one") is first is answering(shelf)
        assert world.opened == ["one"]

    def test_owners_are_apart(self, world: World) -> None:
        shelf = shelf_of(world)
        world.point("one")
        with pytest.raises(Missing):
            shelf.find("you", "live")

    def test_the_old_one_serves_until_the_new_one_is_well(self, world: World) -> None:
        shelf = shelf_of(world)
        world.point("one")
        answering(shelf)
        world.point("broken")
        shelf.refresh()
        assert answering(shelf).student_id == "one"
        world.point("two")
        shelf.refresh()
        assert answering(shelf).student_id == "two"

    def test_one_that_is_damaged_is_not_tried_with_every_request(self, world: World) -> None:
        shelf = shelf_of(world)
        world.point("broken")
        for _ in range(5):
            with pytest.raises(Unavailable):
                answering(shelf)
            shelf.refresh()
        assert world.opened == ["broken"]

    def test_an_older_pointer_changes_nothing(self, world: World) -> None:
        shelf = shelf_of(world)
        shelf.point(Pointer("dep", "me", "live", "two", 2))
        shelf.point(Pointer("dep", "me", "live", "one", 1))
        assert answering(shelf).student_id == "two"
        shelf.point(Pointer("made anew", "me", "live", "one", 1))
        assert answering(shelf).student_id == "one"

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
        eventually(lambda: at_hand(shelf) == "one")
        world.point("two")
        eventually(lambda: at_hand(shelf) == "two")
        world.pointers = []
        eventually(lambda: at_hand(shelf) is None)
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
        eventually(lambda: at_hand(shelf) == "one")
        shelf.close()


class TestCandidates:
    """Whom a deployment's traffic names beside its student."""

    @pytest.fixture
    def world(self, student_folder: Path, other_folder: Path) -> World:
        return World(st_1=student_folder, st_2=other_folder, **{"st_1/teacher": other_folder})

    def test_they_are_loaded_too(self, world: World) -> None:
        shelf = shelf_of(world, interval=0.05)
        world.point("st_1", canary=Canary(student="st_2", fraction=0.1), fallback=Fallback(threshold=0.5))
        shelf.start()
        eventually(lambda: set(shelf.loaded) == {"st_1", "st_2", "st_1/teacher"})
        shelf.forget("st_1")
        assert "st_1/teacher" not in shelf.loaded or world.opened.count("st_1/teacher") > 1
        shelf.close()

    def test_one_that_cannot_load_hurts_nobody(self, world: World) -> None:
        shelf = shelf_of(world, interval=0.05)
        world.point("st_1")
        shelf.start()
        eventually(lambda: at_hand(shelf) == "st_1")
        world.point("st_1", canary=Canary(student="st_9", fraction=0.1))
        eventually(lambda: not shelf.ask_for("st_9"))
        found = shelf.find("me", "live")
        assert (found.version, found.traffic.canary) == (2, Canary(student="st_9", fraction=0.1))
        assert at_hand(shelf) == "st_1"
        shelf.close()
        assert world.opened.count("st_9") == 1

    def test_beyond_the_budget_whoever_is_asked_for(self, world: World) -> None:
        shelf = shelf_of(world, budget=1, interval=0.05)
        world.point("st_1", canary=Canary(student="st_2", fraction=0.1))
        shelf.start()
        eventually(lambda: shelf.loaded == ["st_1"])
        time.sleep(0.2)
        assert world.opened == ["st_1"]
        assert shelf.ask_for("st_2")
        eventually(lambda: "st_2" in world.opened)
        shelf.close()

    @pytest.mark.parametrize(("to", "expected"), [("teacher", "st_1/teacher"), ("st_2", "st_2")])
    def test_the_fallback(self, to: str, expected: str) -> None:
        pointer = Pointer("dep", "me", "live", "st_1", 1, Traffic(fallback=Fallback(to=to, threshold=0.5)))
        assert (pointer.fallback_id, pointer.candidates, pointer.is_plain) == (expected, (expected,), False)
        plain = Pointer("dep", "me", "live", "st_1", 1)
        assert (plain.fallback_id, plain.candidates, plain.is_plain) == (None, (), True)
