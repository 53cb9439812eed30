"""F23: whatever happens to a job, and in whatever order, the invariants hold, and it reaches one end.

A model of the lifecycle, small enough to be seen to be right, walks beside the real one on SQLite. Attempts that have
lost the job go on acting now and then: those are the workers that were thought dead.
"""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event

from models.database import Database
from models.errors import Conflict, Fenced
from models.tables import ALIVE, ENDED, Job
from tests.lives import Life, Seen

POISON = 3


# What a person may ask, of a job in which status, and which one follows; and what they are told will happen.
ASKED: dict[Callable[[Life], str], tuple[dict[str, str], str]] = {
    Life.pause: ({"queued": "paused", "running": "pausing", "pausing": "pausing", "paused": "paused"}, "paused"),
    Life.resume: ({"queued": "queued", "running": "running", "pausing": "running", "paused": "queued"}, "running"),
    Life.cancel: (
        dict.fromkeys(("queued", "paused", "cancelled"), "cancelled") | dict.fromkeys(ALIVE, "cancelling"),
        "cancelled",
    ),
}
ACTS: tuple[Callable[[Life, int], object], ...] = (
    lambda life, attempt: life.record(attempt, 1, 2, 3, phase="export", progress=0.9),
    *(Life.checkpoint, Life.release, Life.crash, Life.succeed, Life.fail, Life.obey_cancel),
)


class Machine(RuleBasedStateMachine):
    """One job after the other, each from its submission to whatever end it finds."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.past: list[tuple[Life, str]] = []

    @initialize()
    def submit(self) -> None:
        self.life = Life(self.database)
        self.status = "queued"
        self.attempt = 0
        self.failures = 0
        self.expired = False
        self.points: dict[int, float] = {}
        self.wish: str | None = None
        """What a person was last told would happen: paused, running or cancelled."""
        self.version = 0
        self.seen = "queued"
        self.vain = self.late = ""

    @precondition(lambda self: self.status in ENDED)
    @rule()
    def submit_the_next(self) -> None:
        self.past.append((self.life, self.status))
        self.submit()

    # What a person asks.

    @precondition(lambda self: self.status in ("queued", "running"))
    @rule()
    def pause(self) -> None:
        self._ask(Life.pause)

    @precondition(lambda self: self.status in ("pausing", "paused"))
    @rule()
    def resume(self) -> None:
        self._ask(Life.resume)

    @precondition(lambda self: self.attempt > 0 and self.status not in ("cancelling", *ENDED))
    @rule()
    def cancel(self) -> None:
        self._ask(Life.cancel)

    @precondition(lambda self: self.vain != self.status)
    @rule()
    def ask_in_vain(self) -> None:
        """For what is so already, or cannot be any more. Once in a status: it is to no purpose."""
        self.vain = self.status
        for ask, (to, _) in ASKED.items():
            if to.get(self.status, self.status) == self.status:
                self._ask(ask)

    def _ask(self, ask: Callable[[Life], str]) -> None:
        to, wish = ASKED[ask]
        if self.status not in to:
            with pytest.raises(Conflict):
                ask(self.life)
            return
        self.status = to[self.status]
        assert ask(self.life) == self.status
        self.wish = wish

    # What workers do.

    @precondition(lambda self: self.status == "queued" or self.expired)
    @rule()
    def claim(self) -> None:
        if self.expired:
            self._lose()
        claimed = self.life.claim()
        assert (claimed is not None) == (self.status == "queued")
        if claimed is not None:
            self.status = "running"
            self.attempt += 1
            assert claimed.attempt == self.attempt

    @precondition(lambda self: self.status in ALIVE)
    @rule(step=st.integers(1, 4))
    def record(self, step: int) -> None:
        self.life.record(self.attempt, step, progress=step / 4)
        self.points[step] = float(self.attempt)

    @precondition(lambda self: self.status in ALIVE)
    @rule()
    def checkpoint(self) -> None:
        self.life.checkpoint(self.attempt)
        self.failures = 0

    @precondition(lambda self: self.status in ALIVE)
    @rule()
    def beat(self) -> None:
        assert self.life.beat(self.attempt) == self.status
        self.expired = False

    @precondition(lambda self: self.status in ALIVE)
    @rule(end=st.sampled_from((Life.succeed, Life.fail, Life.obey_cancel)))
    def end(self, end: Callable[[Life, int], str]) -> None:
        # Once somebody has asked to cancel nothing else comes of it, and nobody is cancelled who has not asked.
        if (end == Life.obey_cancel) == (self.status == "cancelling"):
            self._settle(end(self.life, self.attempt))
        else:
            with pytest.raises(Fenced):
                end(self.life, self.attempt)

    @precondition(lambda self: self.status in ALIVE)
    @rule()
    def drain(self) -> None:
        end = {"pausing": "paused", "cancelling": "cancelled"}.get(self.status, "queued")
        assert self.life.release(self.attempt) == end
        self._settle(end)

    @precondition(lambda self: self.status in ALIVE)
    @rule()
    def crash(self) -> None:
        end = self.life.crash(self.attempt)
        self._lose()
        assert end == self.status

    @precondition(lambda self: self.late != self.status and self.attempt > (self.status in ALIVE))
    @rule(back=st.integers(0, 3))
    def act_too_late(self, back: int) -> None:
        """An attempt that no longer holds the job, and does not know it. Once in a status."""
        self.late = self.status
        attempt = max(1, self.attempt - (self.status in ALIVE) - back)
        assert self.life.beat(attempt) is None
        for act in ACTS:
            with pytest.raises(Fenced):
                act(self.life, attempt)

    # What time does.

    @precondition(lambda self: self.status in ALIVE)
    @rule()
    def expire(self) -> None:
        self.life.expire()
        self.expired = True

    @precondition(lambda self: self.expired)
    @rule()
    def reap(self) -> None:
        assert self.life.reap() == 1
        assert self.life.reap() == 0
        self._lose()

    def _lose(self) -> None:
        """The attempt has ended without a word."""
        if self.status == "running":
            self.failures += 1
            self._settle("failed" if self.failures == POISON else "queued")
        else:
            self._settle({"pausing": "paused", "cancelling": "cancelled"}[self.status])

    def _settle(self, status: str) -> None:
        self.status = status
        self.expired = False

    # What holds at any time.

    @invariant()
    def all_is_well(self) -> None:
        seen = self.life.look()
        self._row_is_what_the_model_says(seen.job)
        self._wish_that_was_granted_comes_true()
        self._events_tell_one_story(seen)
        # I3: each step is there once, as the last attempt that trained it has left it.
        assert seen.points == sorted(self.points.items())

    def _row_is_what_the_model_says(self, job: Job) -> None:
        assert (job.status, job.attempt, job.failures) == (self.status, self.attempt, self.failures)
        assert (job.lease_until is not None) == (self.status in ALIVE)
        assert (job.finished_at is not None) == (self.status in ENDED)
        assert (job.error is not None) == (self.status == "failed")
        # Whoever waits for a change hears of it.
        assert job.version >= self.version
        assert job.version > self.version or self.status == self.seen
        self.version, self.seen = job.version, self.status

    def _wish_that_was_granted_comes_true(self) -> None:
        """I6."""
        allowed = {
            None: {"queued", "running", "succeeded", "failed"},
            "running": {"queued", "running", "succeeded", "failed"},
            "paused": {"pausing", "paused", "succeeded", "failed"},
            "cancelled": {"cancelling", "cancelled"},
        }
        assert self.status in allowed[self.wish]

    def _events_tell_one_story(self, seen: Seen) -> None:
        """I1, I2, I4."""
        ends = [one.code for one in seen.events if one.code in ENDED]
        assert ends == ([self.status] if self.status in ENDED else [])
        attempts = [one.attempt for one in seen.events]
        assert attempts == sorted(attempts)
        assert all(one.message.endswith(".") for one in seen.events)
        assert len(seen.students) == (self.status == "succeeded")

    def teardown(self) -> None:
        """Nothing is stuck: with a worker that is well, and nobody who pauses it, it ends. And no end is undone."""
        if self.status in ALIVE:
            self.expire()
            self.reap()  # which may be the third time
        if self.status == "paused":
            self.resume()
        if self.status == "queued":
            self.life.succeed(self.life.begin())
        assert self.life.status in ENDED
        assert all(life.status == end for life, end in self.past)


@pytest.mark.parametrize("lives", [35, pytest.param(1000, marks=pytest.mark.long)])
def test_any_life_of_a_job(sqlite_database: Database, lives: int) -> None:
    # No power fails in this test: without waiting for the disk it is ten times as fast.
    event.listen(sqlite_database.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    many = settings(
        max_examples=lives,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    class OfThisDatabase(Machine):
        def __init__(self) -> None:
            super().__init__(sqlite_database)

    run_state_machine_as_test(OfThisDatabase, settings=many)
