"""Every change of a job's status, on SQLite and on PostgreSQL: who may, what it leaves, and who comes too late."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import select, update

from models import lifecycle, specs, workers
from models.database import Database, db_now
from models.errors import Conflict, Fenced, Invalid, Overloaded
from models.lifecycle import Claimed, Happening, NewStudent, Point
from models.settings import Settings
from models.tables import ENDED, Dataset, Event, Job, Metric, Student, Teacher, Worker, new_id

TTL = 30.0
COLUMNS = ("text", "label", "side")


def document(dataset: str, /, **more: Any) -> dict[str, Any]:
    return {
        "name": "tweets",
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": dataset},
        "teachers": [{"kind": "local", "model": "file:teacher"}],
        "student": {"kind": "from_teacher", "layers": 1},
        **more,
    }


def dataset(database: Database, *, owner: str = "default", rows: int = 100, status: str = "ready") -> str:
    id_ = new_id("ds")
    columns = [{"name": name, "type": "string"} for name in COLUMNS]
    with database.writing() as session:
        session.add(
            Dataset(
                id=id_,
                owner=owner,
                name="rows",
                status=status,
                columns=columns,
                rows=rows,
                bytes=1,
                sha256="0" * 64,
                artifact=f"datasets/{id_}.parquet",
            )
        )
    return id_


def submit(database: Database, body: dict[str, Any] | None = None, **options: Any) -> tuple[str, bool]:
    body = body or document(dataset(database))
    spec = specs.parse_job(body)
    options = {"owner": "default", "idempotency_key": None, "body_sha256": "a", "max_queued": 10_000, **options}
    with database.writing() as session:
        job, created = lifecycle.submit(
            session, spec=spec, resolved=specs.resolve(spec), document=body, estimates=None, **options
        )
        return job.id, created


def queued(database: Database, **columns: Any) -> str:
    """A job that waits, without its dataset."""
    id_ = new_id("job")
    with database.writing() as session:
        session.add(Job(id=id_, owner="default", spec={}, resolved_spec={"seed": 0}, **columns))
    return id_


def claim(database: Database, job_id: str, *, worker: str = "wk_1", ttl: float = TTL) -> Claimed:
    with database.writing() as session:
        claimed = lifecycle.claim(session, job_id, worker, ttl)
    assert claimed is not None
    return claimed


def running(database: Database) -> Claimed:
    return claim(database, queued(database))


def change(database: Database, job_id: str, **columns: Any) -> None:
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**columns))


def expire(database: Database, job_id: str) -> None:
    change(database, job_id, lease_until=db_now() - 1)


def job(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def events(database: Database, job_id: str) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(Event.code).where(Event.job_id == job_id).order_by(Event.seq)))


def cancel(database: Database, job_id: str) -> None:
    with database.writing() as session:
        lifecycle.request_cancel(session, session.get_one(Job, job_id))


def student() -> NewStudent:
    id_ = new_id("st")
    return NewStudent(id_, "b" * 64, f"students/{id_}", {"format": 1}, {"verdict": "fine"})


def succeed(database: Database, claimed: Claimed, new: NewStudent | None = None) -> str:
    with database.writing() as session:
        return lifecycle.succeed(session, claimed.job_id, claimed.attempt, new or student()).id


class TestSubmit:
    def test_a_job_waits(self, database: Database) -> None:
        job_id, created = submit(database)
        assert created
        found = job(database, job_id)
        assert (found.status, found.device, found.attempt, found.version) == ("queued", "cpu", 0, 1)
        assert found.spec["name"] == "tweets"
        assert found.resolved_spec["stages"][0]["phases"][0]["schedule"]["epochs"] == 3
        assert "no CPU worker" in (found.waiting_reason or "")
        assert events(database, job_id) == ["queued"]

    def test_auto_is_a_gpu_where_one_was_seen(self, database: Database) -> None:
        seen(database, "wk_g", "gpu")
        assert job(database, submit(database)[0]).device == "gpu"
        change_worker(database, "wk_g", seen_at=db_now() - 61)
        assert job(database, submit(database)[0]).device == "cpu"
        body = document(dataset(database), resources={"device": "gpu"})
        assert job(database, submit(database, body)[0]).device == "gpu"

    def test_the_same_key_is_the_same_job(self, database: Database) -> None:
        body = document(dataset(database))
        first = submit(database, body, idempotency_key="k")
        assert first[1]
        assert submit(database, body, idempotency_key="k") == (first[0], False)
        # Another owner's key is another key.
        other = document(dataset(database, owner="other"))
        assert submit(database, other, idempotency_key="k", owner="other")[1]

    def test_the_same_key_with_another_body(self, database: Database) -> None:
        submit(database, idempotency_key="k")
        with pytest.raises(Conflict) as caught:
            submit(database, idempotency_key="k", body_sha256="b")
        assert caught.value.code == "idempotency_key_reused"

    def test_the_queue_of_an_owner_is_bounded(self, database: Database) -> None:
        submit(database, max_queued=1)
        with pytest.raises(Overloaded) as caught:
            submit(database, max_queued=1)
        assert caught.value.code == "queue_full"
        submit(database, document(dataset(database, owner="other")), owner="other", max_queued=1)

    def test_nothing_is_kept_of_a_job_that_is_refused(self, database: Database) -> None:
        with pytest.raises(Invalid):
            submit(database, document("ds_absent0"), idempotency_key="k")
        assert submit(database, idempotency_key="k")[1]


class TestReferences:
    @pytest.fixture
    def problems(self, database: Database) -> Callable[..., list[tuple[str, str]]]:
        def check(body: dict[str, Any]) -> list[tuple[str, str]]:
            with database.reading() as session:
                found = lifecycle.check_references(session, "default", specs.parse_job(body))
            return [(problem.pointer, problem.code) for problem in found]

        return check

    def test_all_is_well(self, database: Database, problems: Callable[..., Any]) -> None:
        assert problems(document(dataset(database))) == []

    def test_someone_elses_dataset_is_absent(self, database: Database, problems: Callable[..., Any]) -> None:
        assert problems(document(dataset(database, owner="other"))) == [("/dataset/id", "dataset_not_found")]
        assert problems(document("ds_nothing0")) == [("/dataset/id", "dataset_not_found")]

    def test_every_column_that_is_missing(self, database: Database, problems: Callable[..., Any]) -> None:
        body = document(dataset(database))
        body["task"] |= {"text": "tweet", "label": "mood"}
        body["dataset"]["split"] = "part"
        assert problems(body) == [
            ("/task/text", "missing_column"),
            ("/task/label", "missing_column"),
            ("/dataset/split", "missing_column"),
        ]

    def test_three_datasets(self, database: Database, problems: Callable[..., Any]) -> None:
        there = dataset(database)
        body = document(there, dataset={"train": there, "validation": "ds_nothing0", "test": there})
        assert problems(body) == [("/dataset/validation", "dataset_not_found")]

    def test_no_row_left_to_train_on(self, database: Database, problems: Callable[..., Any]) -> None:
        there = dataset(database, rows=100)
        assert problems(document(there, dataset={"id": there, "test": 90, "validation": 0.1})) == [
            ("/dataset/test", "too_few_rows")
        ]
        assert problems(document(there, dataset={"id": there, "test": 80, "validation": 0.1})) == []

    def test_students_and_teachers(self, database: Database, problems: Callable[..., Any]) -> None:
        body = document(
            dataset(database),
            teachers=[{"kind": "local", "model": "teacher:tc_nothing000"}],
            student={"kind": "pretrained", "model": "student:st_nothing000"},
        )
        assert problems(body) == [
            ("/teachers/0/model", "teacher_not_found"),
            ("/student/model", "student_not_found"),
        ]
        with database.writing() as session:
            common = {"owner": "default", "name": "", "artifact": "x"}
            session.add(Teacher(id="tc_nothing000", sha256="0", bytes=1, config={}, **common))
            session.add(Student(id="st_nothing000", job_id="job_x", hash="0", manifest={}, report={}, **common))
        assert problems(body) == []


class TestClaim:
    def test_a_claim_is_a_new_attempt_with_a_lease(self, database: Database) -> None:
        job_id = queued(database)
        claimed = claim(database, job_id)
        assert (claimed.attempt, claimed.resolved_spec) == (1, {"seed": 0})
        found = job(database, job_id)
        assert (found.status, found.worker, found.attempt, found.waiting_reason) == ("running", "wk_1", 1, None)
        assert found.started_at is not None
        assert found.lease_until is not None
        assert TTL - 5 < found.lease_until - time.time() < TTL + 5
        assert events(database, job_id) == ["started"]

    @pytest.mark.parametrize("status", ["running", "pausing", "paused", "cancelling", *ENDED])
    def test_only_what_waits_is_claimed(self, database: Database, status: str) -> None:
        job_id = queued(database, status=status, lease_until=time.time() + 100)
        with database.writing() as session:
            assert lifecycle.claim(session, job_id, "wk_1", TTL) is None

    def test_only_for_its_device(self, database: Database) -> None:
        job_id = queued(database, device="gpu")
        with database.writing() as session:
            assert lifecycle.claim(session, job_id, "wk_1", TTL, devices=("cpu",)) is None
            assert lifecycle.claim(session, job_id, "wk_1", TTL, devices=("gpu", "cpu")) is not None

    def test_a_lease_that_ran_out_is_taken_over_and_counted(self, database: Database) -> None:
        first = running(database)
        expire(database, first.job_id)
        second = claim(database, first.job_id, worker="wk_2")
        assert second.attempt == 2
        found = job(database, first.job_id)
        assert (found.worker, found.failures) == ("wk_2", 1)
        assert events(database, first.job_id) == ["started", "lease_lost", "started"]

    def test_a_lease_that_was_never_written_is_no_lease(self, database: Database) -> None:
        """A NULL would otherwise be stuck for ever: it is less than nothing."""
        job_id = queued(database, status="running", attempt=4)
        assert claim(database, job_id).attempt == 5

    def test_the_best_one_first(self, database: Database) -> None:
        old, new = queued(database), queued(database)
        urgent = queued(database, priority=1)
        queued(database, device="gpu")
        queued(database, status="paused")
        with database.reading() as session:
            assert lifecycle.next_claimable(session, "cpu") == [urgent, old, new]
            assert lifecycle.next_claimable(session, "cpu", limit=1) == [urgent]


class TestHeartbeat:
    def test_it_renews_the_lease_and_brings_the_wish(self, database: Database) -> None:
        claimed = running(database)
        change(database, claimed.job_id, lease_until=db_now() + 1)
        assert beat(database, claimed) == "running"
        assert (job(database, claimed.job_id).lease_until or 0) > time.time() + TTL - 5
        cancel(database, claimed.job_id)
        assert beat(database, claimed) == "cancelling"

    def test_another_attempt_has_begun(self, database: Database) -> None:
        first = running(database)
        expire(database, first.job_id)
        claim(database, first.job_id)
        assert beat(database, first) is None

    def test_the_job_has_ended(self, database: Database) -> None:
        claimed = running(database)
        succeed(database, claimed)
        assert beat(database, claimed) is None


class TestRecord:
    def test_what_is_seen_is_a_new_version(self, database: Database) -> None:
        claimed = running(database)
        before = job(database, claimed.job_id).version
        record(database, claimed, phase="distil", progress=0.5, eta=12.0)
        found = job(database, claimed.job_id)
        assert (found.phase, found.progress, found.eta_seconds, found.version) == ("distil", 0.5, 12.0, before + 1)
        record(database, claimed, metrics=[point(1, 0.5)])
        assert job(database, claimed.job_id).version == before + 1

    def test_a_step_that_is_trained_again_overwrites_its_point(self, database: Database) -> None:
        first = running(database)
        record(database, first, metrics=[point(1, 0.5), point(2, 0.4)])
        expire(database, first.job_id)
        second = claim(database, first.job_id)
        # The same step twice in one batch, too: the last one counts.
        record(database, second, metrics=[point(2, 9.0), point(2, 0.3), point(3, 0.2)])
        assert points(database, first.job_id) == [(1, 0.5, 1), (2, 0.3, 2), (3, 0.2, 2)]

    def test_more_points_than_one_statement_takes(self, database: Database) -> None:
        claimed = running(database)
        record(database, claimed, metrics=[point(step, step / 2) for step in range(5000)])
        assert len(points(database, claimed.job_id)) == 5000

    def test_what_is_no_number_is_left_out(self, database: Database) -> None:
        claimed = running(database)
        record(database, claimed, metrics=[point(1, float("nan")), point(2, float("inf")), point(3, 1.0)])
        assert points(database, claimed.job_id) == [(3, 1.0, 1)]

    def test_events_keep_their_order(self, database: Database) -> None:
        claimed = running(database)
        record(database, claimed, events=[Happening(f"e{i}", "happened", {"i": i}) for i in range(20)])
        assert events(database, claimed.job_id) == ["started", *(f"e{i}" for i in range(20))]

    def test_a_fenced_attempt_writes_nothing(self, database: Database) -> None:
        first = running(database)
        expire(database, first.job_id)
        claim(database, first.job_id)
        with pytest.raises(Fenced):
            record(database, first, phase="distil", metrics=[point(1, 1.0)], events=[Happening("late", "", {})])
        assert points(database, first.job_id) == []
        assert "late" not in events(database, first.job_id)
        assert job(database, first.job_id).phase is None


class TestEnds:
    def test_success_shows_the_student(self, database: Database) -> None:
        claimed = running(database)
        new = student()
        assert succeed(database, claimed, new) == new.id
        found = job(database, claimed.job_id)
        assert (found.status, found.student_id, found.progress, found.lease_until) == ("succeeded", new.id, 1.0, None)
        assert found.finished_at is not None
        with database.reading() as session:
            row = session.get_one(Student, new.id)
        assert (row.owner, row.job_id, row.report) == ("default", claimed.job_id, {"verdict": "fine"})
        assert events(database, claimed.job_id) == ["started", "succeeded"]

    def test_success_happens_once(self, database: Database) -> None:
        claimed = running(database)
        succeed(database, claimed)
        with pytest.raises(Fenced):
            succeed(database, claimed)
        assert events(database, claimed.job_id).count("succeeded") == 1

    def test_a_fenced_success_leaves_no_student(self, database: Database) -> None:
        first = running(database)
        expire(database, first.job_id)
        claim(database, first.job_id)
        with pytest.raises(Fenced):
            succeed(database, first)
        with database.reading() as session:
            assert session.scalars(select(Student)).all() == []

    def test_a_failure_says_what_and_why(self, database: Database) -> None:
        claimed = running(database)
        with database.writing() as session:
            lifecycle.fail(
                session,
                claimed.job_id,
                claimed.attempt,
                code="diverged",
                message="the loss is not a number",
                hint="a lower learning_rate",
                pointer="/schedule/learning_rate",
            )
        found = job(database, claimed.job_id)
        assert found.status == "failed"
        assert found.error == {
            "code": "diverged",
            "message": "the loss is not a number",
            "hint": "a lower learning_rate",
            "pointer": "/schedule/learning_rate",
        }
        assert events(database, claimed.job_id) == ["started", "failed"]

    def test_a_drain_is_not_counted(self, database: Database) -> None:
        claimed = running(database)
        with database.writing() as session:
            assert lifecycle.release(session, claimed.job_id, claimed.attempt) == "queued"
        found = job(database, claimed.job_id)
        assert (found.status, found.failures, found.worker, found.lease_until) == ("queued", 0, None, None)
        assert claim(database, claimed.job_id).attempt == 2

    def test_three_crashes_in_a_row_are_poison(self, database: Database) -> None:
        job_id = queued(database)
        assert [crash(database, claim(database, job_id)) for _ in range(3)] == ["queued", "queued", "failed"]
        found = job(database, job_id)
        assert (found.status, (found.error or {})["code"], found.failures) == ("failed", "poison", 3)
        assert events(database, job_id) == ["started", "crashed", "started", "crashed", "started", "failed"]

    def test_a_checkpoint_forgives(self, database: Database) -> None:
        job_id = queued(database)
        for _ in range(5):
            claimed = claim(database, job_id)
            with database.writing() as session:
                lifecycle.checkpointed(session, job_id, claimed.attempt)
            assert crash(database, claimed) == "queued"

    def test_three_lost_leases_are_poison(self, database: Database) -> None:
        job_id = queued(database)
        for _ in range(3):
            claim(database, job_id)
            expire(database, job_id)
            with database.writing() as session:
                assert lifecycle.reap(session) == 1
        assert (job(database, job_id).error or {})["code"] == "poison"


class TestCancel:
    def test_what_waits_is_cancelled_at_once(self, database: Database) -> None:
        job_id = queued(database)
        cancel(database, job_id)
        assert job(database, job_id).status == "cancelled"
        cancel(database, job_id)
        assert events(database, job_id) == ["cancelled"]

    def test_what_runs_is_asked(self, database: Database) -> None:
        claimed = running(database)
        cancel(database, claimed.job_id)
        cancel(database, claimed.job_id)
        assert job(database, claimed.job_id).status == "cancelling"
        with database.writing() as session:
            lifecycle.cancelled(session, claimed.job_id, claimed.attempt)
        cancel(database, claimed.job_id)
        assert job(database, claimed.job_id).status == "cancelled"
        assert events(database, claimed.job_id) == ["started", "cancel_requested", "cancelled"]

    def test_after_a_success_it_is_too_late(self, database: Database) -> None:
        claimed = running(database)
        succeed(database, claimed)
        with pytest.raises(Conflict) as caught:
            cancel(database, claimed.job_id)
        assert caught.value.code == "illegal_transition"
        assert job(database, claimed.job_id).status == "succeeded"

    @pytest.mark.parametrize("end", ["success", "failure"])
    def test_once_asked_nothing_else_comes_of_it(self, database: Database, end: str) -> None:
        claimed = running(database)
        cancel(database, claimed.job_id)
        verb = succeed if end == "success" else fail
        with pytest.raises(Fenced):
            verb(database, claimed)
        assert job(database, claimed.job_id).status == "cancelling"

    @pytest.mark.parametrize("how", ["crash", "release", "silence"])
    def test_however_its_trainer_ends(self, database: Database, how: str) -> None:
        claimed = running(database)
        cancel(database, claimed.job_id)
        if how == "crash":
            crash(database, claimed)
        elif how == "release":
            with database.writing() as session:
                assert lifecycle.release(session, claimed.job_id, claimed.attempt) == "cancelled"
        else:
            expire(database, claimed.job_id)
            with database.writing() as session:
                assert lifecycle.reap(session) == 1
        assert job(database, claimed.job_id).status == "cancelled"
        assert events(database, claimed.job_id)[-1] == "cancelled"

    def test_nobody_has_asked(self, database: Database) -> None:
        claimed = running(database)
        with pytest.raises(Fenced), database.writing() as session:
            lifecycle.cancelled(session, claimed.job_id, claimed.attempt)


class TestDelete:
    def test_an_ended_job_goes_with_all_that_was_said_of_it(self, database: Database) -> None:
        claimed = running(database)
        record(database, claimed, metrics=[point(1, 1.0)])
        id_ = succeed(database, claimed)
        delete(database, claimed.job_id)
        with database.reading() as session:
            assert session.scalars(select(Event)).all() == []
            assert session.scalars(select(Metric)).all() == []
            assert session.get(Student, id_) is not None

    def test_a_job_that_may_still_run_stays(self, database: Database) -> None:
        job_id = queued(database)
        with pytest.raises(Conflict):
            delete(database, job_id)
        assert job(database, job_id).status == "queued"

    def test_the_key_of_a_deleted_job_makes_no_second_one(self, database: Database) -> None:
        job_id, _ = submit(database, idempotency_key="k")
        cancel(database, job_id)
        delete(database, job_id)
        with pytest.raises(Conflict) as caught:
            submit(database, idempotency_key="k")
        assert caught.value.code == "idempotency_key_used"


class TestSweep:
    def test_it_reaps_and_rings(self, database: Database, settings: Settings) -> None:
        seen(database, "wk_2", "cpu")
        silent = running(database)
        expire(database, silent.job_id)
        bell = Bell()
        lifecycle.sweep(database, bell, settings)
        assert job(database, silent.job_id).status == "queued"
        assert bell.rung == [(silent.job_id, "cpu")]
        lifecycle.sweep(database, bell, settings)
        assert len(bell.rung) == 1

    def test_it_leaves_what_is_well_alone(self, database: Database, settings: Settings) -> None:
        claimed = running(database)
        lifecycle.sweep(database, Bell(), settings)
        assert beat(database, claimed) == "running"

    def test_no_bell_is_lost_while_the_broker_is_away(self, database: Database, settings: Settings) -> None:
        seen(database, "wk_1", "cpu")
        job_id = queued(database)
        bell = Bell("unreachable")
        lifecycle.sweep(database, bell, settings)
        assert bell.rung == []
        bell.now = "ok"
        lifecycle.sweep(database, bell, settings)
        assert bell.rung == [(job_id, "cpu")]

    def test_the_first_few_and_not_all(self, database: Database) -> None:
        seen(database, "wk_1", "cpu")
        jobs = [queued(database) for _ in range(5)]
        urgent = queued(database, priority=3)
        assert ring(database, limit=3) == [urgent, *jobs[:2]]
        assert ring(database, limit=3) == jobs[2:]
        assert ring(database, limit=3) == []
        assert ring(database, older_than=-1, limit=2) == [urgent, jobs[0]]

    def test_only_for_those_who_can_hear(self, database: Database) -> None:
        cpu, gpu = queued(database), queued(database, device="gpu")
        assert ring(database) == []
        seen(database, "wk_c", "cpu", jobs=["job_other"])
        assert ring(database) == []
        seen(database, "wk_c", "cpu")
        assert ring(database) == [cpu]
        seen(database, "wk_g", "gpu")
        assert ring(database, older_than=-1) == [cpu, gpu]

    def test_workers_come_and_go(self, database: Database) -> None:
        seen(database, "wk_1", "cpu")
        seen(database, "wk_1", "cpu", jobs=["job_1"])
        with database.reading() as session:
            (row,) = session.scalars(select(Worker))
        assert (row.jobs, row.slots) == (["job_1"], 1)
        change_worker(database, "wk_1", seen_at=db_now() - 90_000)
        seen(database, "wk_2", "cpu")
        with database.writing() as session:
            assert [row.id for row in session.scalars(select(Worker))] == ["wk_2"]
            workers.left(session, "wk_2")
            assert session.scalars(select(Worker)).all() == []


# --- doing it ---------------------------------------------------------------------------------------------------------


class Bell:
    def __init__(self, state: str = "ok") -> None:
        self.now = state
        self.rung: list[tuple[str, str]] = []

    def ring(self, job_id: str, device: str) -> None:
        self.rung.append((job_id, device))

    def state(self) -> str:
        return self.now


def beat(database: Database, claimed: Claimed) -> str | None:
    with database.writing() as session:
        return lifecycle.heartbeat(session, claimed.job_id, claimed.attempt, TTL)


def record(database: Database, claimed: Claimed, **reported: Any) -> None:
    with database.writing() as session:
        lifecycle.record(session, claimed.job_id, claimed.attempt, **reported)


def crash(database: Database, claimed: Claimed) -> str:
    with database.writing() as session:
        return lifecycle.crashed(session, claimed.job_id, claimed.attempt, "the trainer ended with status 1")


def fail(database: Database, claimed: Claimed) -> None:
    with database.writing() as session:
        lifecycle.fail(session, claimed.job_id, claimed.attempt, code="diverged", message="diverged")


def delete(database: Database, job_id: str) -> None:
    with database.writing() as session:
        lifecycle.delete(session, session.get_one(Job, job_id))


def ring(database: Database, **options: Any) -> list[str]:
    with database.writing() as session:
        return [job_id for job_id, _ in lifecycle.to_ring(session, **options)]


def seen(database: Database, worker: str, device: workers.Device, jobs: Sequence[str] = ()) -> None:
    with database.writing() as session:
        workers.seen(session, worker_id=worker, host="here", pid=1, device=device, device_name="", slots=1, jobs=jobs)


def change_worker(database: Database, worker: str, **columns: Any) -> None:
    with database.writing() as session:
        session.execute(update(Worker).where(Worker.id == worker).values(**columns))


def point(step: int, value: float) -> Point:
    return Point("distilled", 0, 0, "loss", step, value)


def points(database: Database, job_id: str) -> list[tuple[int, float, int]]:
    with database.reading() as session:
        rows = session.scalars(select(Metric).where(Metric.job_id == job_id).order_by(Metric.step))
        return [(row.step, row.value, row.attempt) for row in rows]
