"""Pausing and resuming a job, on SQLite and on PostgreSQL: who may, what becomes of it, and who comes too late."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest

from models import lifecycle, workers
from models.database import Database
from models.errors import Conflict, Fenced, Missing, Overloaded
from models.tables import ENDED, Dataset, Job, new_id
from tests.lives import Life
from tests.submitting import submit


class TestPause:
    def test_what_waits_is_paused_at_once(self, database: Database) -> None:
        life = Life(database, waiting_reason="waiting for a free CPU worker")
        version = life.job.version
        assert life.pause() == "paused"
        job = life.job
        assert (job.status, job.waiting_reason, job.attempt, job.failures) == ("paused", None, 0, 0)
        assert job.version == version + 1
        assert life.codes == ["paused"]
        assert life.claim() is None

    def test_what_runs_is_asked_and_keeps_its_lease(self, database: Database) -> None:
        life = Life(database)
        attempt = life.begin()
        assert life.pause() == "pausing"
        assert life.beat(attempt) == "pausing"
        life.record(attempt, 1, progress=0.5, eta=8.0)
        life.checkpoint(attempt)
        assert life.release(attempt) == "paused"
        job = life.job
        assert (job.status, job.lease_until, job.worker, job.failures) == ("paused", None, None, 0)
        assert (job.progress, job.eta_seconds, job.waiting_reason, job.finished_at) == (0.5, 8.0, None, None)
        assert life.codes == ["started", "pause_requested", "trained", "paused"]

    def test_to_ask_again_changes_nothing(self, database: Database) -> None:
        for status in ("pausing", "paused"):
            life = Life(database, status=status)
            assert life.pause() == status
            assert (life.job.version, life.codes) == (1, [])

    def test_however_its_trainer_ends(self, database: Database) -> None:
        for how in (Life.release, Life.crash):
            life = Life(database, failures=2)
            attempt = life.begin()
            life.pause()
            assert how(life, attempt) == "paused"
            assert (life.status, life.job.failures, life.codes[-1]) == ("paused", 2, "paused")

    def test_its_worker_has_died(self, database: Database) -> None:
        """The person asked for it: it does not run again by itself, and it is no failure."""
        life = Life(database, failures=2)
        life.begin()
        life.pause()
        life.expire()
        assert life.claim() is None
        assert (life.status, life.job.failures, life.job.lease_until) == ("paused", 2, None)
        assert life.reap() == 0

    def test_one_that_ends_first_has_ended(self, database: Database) -> None:
        done, broken = Life(database), Life(database)
        for life, end in ((done, Life.succeed), (broken, Life.fail)):
            attempt = life.begin()
            life.pause()
            end(life, attempt)
        assert (done.status, len(done.look().students)) == ("succeeded", 1)
        assert broken.status == "failed"

    def test_it_can_be_cancelled(self, database: Database) -> None:
        waiting, held = Life(database), Life(database)
        waiting.pause()
        assert waiting.cancel() == "cancelled"
        attempt = held.begin()
        held.pause()
        assert [held.cancel(), held.cancel()] == ["cancelling", "cancelling"]
        assert held.release(attempt) == "cancelled"
        assert waiting.job.finished_at is not None
        assert held.job.finished_at is not None

    def test_it_is_not_deleted(self, sqlite_database: Database) -> None:
        life = Life(sqlite_database, status="paused")
        with pytest.raises(Conflict), sqlite_database.writing() as session:
            lifecycle.delete(session, session.get_one(Job, life.id))
        assert life.status == "paused"

    def test_one_that_is_gone(self, sqlite_database: Database) -> None:
        life = Life(sqlite_database, status="failed")
        with pytest.raises(Missing), sqlite_database.writing() as session:
            job = session.get_one(Job, life.id)
            lifecycle.delete(session, job)
            lifecycle.request_pause(session, job)


class TestResume:
    def test_it_waits_again_and_goes_on(self, database: Database) -> None:
        life = Life(database)
        attempt = life.begin()
        life.record(attempt, 1, 2, progress=0.5, eta=8.0)
        life.pause()
        life.release(attempt)
        assert life.resume() == "queued"
        job = life.job
        assert (job.status, job.progress, job.rung_at, job.failures) == ("queued", 0.5, None, 0)
        assert "no CPU worker has been seen" in (job.waiting_reason or "")
        assert life.begin() == 2
        life.record(2, 2, 3)
        assert life.look().points == [(1, 1.0), (2, 2.0), (3, 2.0)]
        told = ["started", "trained", "pause_requested", "paused", "resume_requested", "started", "trained"]
        assert life.codes == told

    def test_why_it_waits_is_what_a_new_job_would_hear(self, sqlite_database: Database) -> None:
        life = Life(sqlite_database, status="paused", device="gpu")
        with sqlite_database.writing() as session:
            workers.seen(
                session, worker_id="wk_1", host="here", pid=1, device="gpu", device_name="", slots=1, jobs=["job_other"]
            )
        life.resume()
        assert life.job.waiting_reason == "waiting for a free GPU worker"
        assert "GPU" in life.look().events[-1].message

    def test_the_sweep_rings_for_it(self, database: Database) -> None:
        life = Life(database, status="paused", rung_at=1e12)
        with database.writing() as session:
            workers.seen(session, worker_id="wk_1", host="", pid=1, device="cpu", device_name="", slots=1, jobs=[])
            assert lifecycle.to_ring(session) == []
        life.resume()
        with database.writing() as session:
            assert lifecycle.to_ring(session) == [(life.id, "cpu")]

    def test_before_its_trainer_has_heard_nothing_happens(self, database: Database) -> None:
        life = Life(database)
        attempt = life.begin()
        life.pause()
        assert life.resume() == "running"
        assert life.beat(attempt) == "running"
        assert life.succeed(attempt) == "succeeded"
        assert life.codes == ["started", "pause_requested", "resume_requested", "succeeded"]

    def test_after_its_trainer_has_heard_it_waits_again(self, database: Database) -> None:
        life = Life(database)
        attempt = life.begin()
        life.pause()
        assert life.beat(attempt) == "pausing"
        assert life.resume() == "running"
        assert life.release(attempt) == "queued"
        assert (life.job.failures, life.job.rung_at) == (0, None)
        assert life.begin() == 2

    def test_on_and_off_as_often_as_one_likes(self, sqlite_database: Database) -> None:
        life = Life(sqlite_database)
        for round_ in range(1, 4):
            assert life.begin() == round_
            assert [life.pause(), life.resume(), life.pause()] == ["pausing", "running", "pausing"]
            life.release(round_)
            assert [life.resume(), life.pause(), life.resume()] == ["queued", "paused", "queued"]

    def test_to_ask_again_changes_nothing(self, database: Database) -> None:
        for status in ("queued", "running"):
            life = Life(database, status=status)
            assert life.resume() == status
            assert (life.job.version, life.codes) == (1, [])

    def test_the_queue_is_never_too_full_for_it(self, sqlite_database: Database) -> None:
        """What is paused counts as waiting: else a full queue could be paused, and filled again."""
        body = {
            "task": {"kind": "text-classification", "text": "text", "label": "label"},
            "dataset": {"id": self.dataset(sqlite_database)},
            "teachers": [{"kind": "local", "model": "file:teacher"}],
            "student": {"kind": "from_teacher", "layers": 1},
        }
        life = Life(sqlite_database)
        life.pause()
        with pytest.raises(Overloaded):
            submit(sqlite_database, body, max_queued=1)
        life.resume()
        life.cancel()
        submit(sqlite_database, body, max_queued=1)

    def dataset(self, database: Database) -> str:
        id_ = new_id("ds")
        columns = [{"name": "text"}, {"name": "label"}]
        with database.writing() as session:
            session.add(
                Dataset(id=id_, owner="default", name="", columns=columns, rows=99, bytes=1, sha256="", artifact="")
            )
        return id_


def test_it_is_too_late(database: Database) -> None:
    """What is being cancelled, or has ended, is neither paused nor resumed."""
    for status in ("cancelling", *ENDED):
        life = Life(database, status=status)
        for ask in (life.pause, life.resume):
            with pytest.raises(Conflict) as caught:
                ask()
            assert (caught.value.code, caught.value.hint is None) == ("illegal_transition", False)
            assert (life.status, life.job.version, life.codes) == (status, 1, [])


LATE: tuple[Callable[[Life], object], ...] = (
    lambda life: life.record(1, 7, phase="export"),
    lambda life: life.checkpoint(1),
    lambda life: life.succeed(1),
    lambda life: life.fail(1),
    lambda life: life.release(1),
    lambda life: life.crash(1),
    lambda life: life.obey_cancel(1),
)


@pytest.mark.parametrize("then", ["paused", "queued", "running"])
def test_a_worker_that_was_thought_dead_writes_nothing(database: Database, then: str) -> None:
    """It comes back when its job is paused, waits again, or runs elsewhere."""
    life = Life(database, failures=1)
    life.begin()
    life.pause()
    life.expire()
    life.reap()
    if then != "paused":
        life.resume()
    if then == "running":
        life.begin()
    before = (life.codes, life.job.version, life.job.failures)
    for late in LATE:
        with pytest.raises(Fenced):
            late(life)
    assert life.beat(1) is None
    seen = life.look()
    assert (seen.job.status, seen.job.phase, seen.points, seen.students) == (then, None, [], [])
    assert (life.codes, life.job.version, life.job.failures) == before


class TestAtOnce:
    """Of many callers one changes the row, and whoever is answered has what they asked for."""

    def test_pauses(self, database: Database) -> None:
        for before, after in (("queued", "paused"), ("running", "pausing")):
            life = Life(database, status=before)
            assert together(*[life.pause] * 6) == [after] * 6
            assert (life.job.version, len(life.codes)) == (2, 1)

    def test_resumes(self, database: Database) -> None:
        for before, after in (("paused", "queued"), ("pausing", "running")):
            life = Life(database, status=before)
            assert together(*[life.resume] * 6) == [after] * 6
            assert (life.job.version, life.codes) == (2, ["resume_requested"])

    def test_a_pause_and_a_claim(self, database: Database) -> None:
        for _ in range(5):
            life = Life(database)
            asked, claimed = together(life.pause, life.claim)
            assert (asked, claimed is not None, life.status) in {
                ("paused", False, "paused"),
                ("pausing", True, "pausing"),
            }

    def test_a_pause_and_the_end(self, database: Database) -> None:
        for _ in range(5):
            life = Life(database, status="running")
            asked, end = together(life.pause, partial(life.succeed, 1))
            assert end == "succeeded"
            assert asked == "pausing" or (isinstance(asked, Conflict) and asked.code == "illegal_transition")
            assert (life.status, len(life.look().students)) == ("succeeded", 1)

    def test_a_wish_is_not_lost_to_a_drain(self, database: Database) -> None:
        """Whichever comes first, the job neither waits nor runs."""
        for ask, end in ((Life.pause, "paused"), (Life.cancel, "cancelled")) * 4:
            life = Life(database, status="running")
            together(partial(ask, life), partial(life.release, 1))
            assert life.status == end

    def test_a_cancel_a_pause_and_a_resume(self, database: Database) -> None:
        for status in ("queued", "running", "paused", "pausing"):
            life = Life(database, status=status)
            together(life.cancel, life.pause, life.resume)
            assert life.status in {"cancelled", "cancelling"}


def together(*calls: Callable[[], object]) -> list[object]:
    """What each answers, or raises, when all are called at once."""
    start = Barrier(len(calls))

    def call(one: Callable[[], object]) -> object:
        start.wait()
        try:
            return one()
        except (Conflict, Fenced) as refusal:
            return refusal

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))
