"""Figures of several API processes: put down, added up, and settled by; old ones go."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models import deployments, traffic
from models.database import Database
from models.errors import Missing
from models.figures import BOUNDS, Arm, Total, bucket
from models.specs.deployments import Auto
from models.tables import ArmCount, Deployment, DeploymentChange, Student, new_id, utc_now

ASKING = Auto(min_inputs=1000, min_agreement=0.95, max_error_rate=0.01, max_latency_ratio=1.5).model_dump(mode="json")


def student() -> Student:
    id_ = new_id("st")
    return Student(
        id=id_, owner="default", job_id=new_id("job"), hash="0" * 64, artifact=f"students/{id_}", manifest={}, report={}
    )


def deployed(database: Database, name: str = "live", **wanted: Any) -> tuple[str, str, str]:
    """The ids of a deployment, of the student that serves and of its canary of a tenth."""
    one, other = student(), student()
    shape = {"canary": {"student": other.id, "fraction": 0.1}, **wanted}
    row = Deployment(
        id=new_id("dep"), owner="default", name=name, student_id=one.id, gate=None, traffic=shape, version=1
    )
    with database.writing() as session:
        session.add_all([one, other])
        session.flush()
        session.add(row)
        session.flush()
        session.add(_change(row, "put"))
    return row.id, one.id, other.id


def _change(row: Deployment, verb: str) -> DeploymentChange:
    return DeploymentChange(
        deployment_id=row.id, version=row.version, student_id=row.student_id, verb=verb, by="key", traffic=row.traffic
    )


def total(
    deployment_id: str,
    arm: Arm,
    student_id: str,
    calls: int,
    *,
    version: int = 1,
    errors: int = 0,
    compared: int = 0,
    agreed: int = 0,
) -> Total:
    """Calls of one input and 10 ms each."""
    latency = [0] * (len(BOUNDS) + 1)
    latency[bucket(0.010)] = calls
    return Total(deployment_id, version, arm, student_id, calls, calls, errors, compared, agreed, latency)


def put_down(database: Database, process: str, *totals: Total) -> set[str]:
    with database.writing() as session:
        return traffic.write(session, process, totals)


def live(database: Database, deployment_id: str, version: int | None = None) -> traffic.Live:
    with database.reading() as session:
        return traffic.live(session, session.get_one(Deployment, deployment_id), version)


class TestFigures:
    def test_processes_are_added_up_and_each_overwrites_its_own(self, database: Database) -> None:
        id_, one, other = deployed(database)
        for process in range(3):
            for calls in (10, 20):  # the second time it has seen ten more
                put_down(
                    database,
                    f"process-{process}",
                    total(id_, "stable", one, 9 * calls),
                    total(id_, "canary", other, calls, errors=process, compared=calls, agreed=calls - 1),
                )
        now = live(database, id_)
        assert [(arm.arm, arm.student_id) for arm in now.figures] == [("stable", one), ("canary", other)]
        first, second = now.figures
        assert (first.calls, first.inputs, first.errors, first.timed) == (540, 540, 0, 540)
        assert (second.calls, second.errors, second.compared, second.agreed, second.timed) == (60, 3, 60, 57, 60)
        assert second.quantile(0.5) == pytest.approx(0.010, rel=0.12)

    def test_an_arm_that_has_seen_nothing_is_there(self, sqlite_database: Database) -> None:
        id_, one, other = deployed(sqlite_database, fallback={"to": "teacher", "threshold": 0.9})
        figures = live(sqlite_database, id_).figures
        assert [(arm.arm, arm.student_id, arm.calls) for arm in figures] == [
            ("stable", one, 0), ("canary", other, 0), ("fallback", f"{one}/teacher", 0),
        ]  # fmt: skip

    def test_versions_are_apart_and_earlier_ones_readable(self, sqlite_database: Database) -> None:
        id_, one, other = deployed(sqlite_database)
        put_down(sqlite_database, "p", total(id_, "stable", one, 90), total(id_, "canary", other, 10))
        move_on(sqlite_database, id_)
        put_down(sqlite_database, "p", total(id_, "stable", one, 5, version=2))
        now, before = live(sqlite_database, id_), live(sqlite_database, id_, 1)
        assert [(arm.arm, arm.calls) for arm in now.figures] == [("stable", 5)]
        assert [(arm.arm, arm.calls) for arm in before.figures] == [("stable", 90), ("canary", 10)]
        assert before.since < now.since
        with pytest.raises(Missing, match="has no version 3"):
            live(sqlite_database, id_, 3)

    def test_a_deployment_that_went_is_named_and_the_others_are_written(self, database: Database) -> None:
        id_, one, _ = deployed(database)
        gone = total("dep_gone", "stable", one, 5)
        assert put_down(database, "p", gone, total(id_, "stable", one, 5)) == {"dep_gone"}
        assert live(database, id_).figures[0].calls == 5

    def test_many_rows_at_once(self, sqlite_database: Database) -> None:
        id_, one, _ = deployed(sqlite_database)
        put_down(sqlite_database, "p", *(total(id_, "stable", one, 1, version=at) for at in range(1, 1101)))
        with sqlite_database.reading() as session:
            assert len(session.scalars(select(ArmCount.version)).all()) == 1100


def move_on(database: Database, deployment_id: str) -> None:
    """To a version without a candidate."""
    with database.writing() as session:
        row = session.get_one(Deployment, deployment_id)
        row.version += 1
        row.traffic = {}
        session.add(_change(row, "put"))


class TestSweep:
    def test_only_old_figures_of_earlier_versions_without_a_candidate_go(self, database: Database) -> None:
        id_, one, other = deployed(database)
        for _ in range(3):
            move_on(database, id_)
        put_down(
            database,
            "p",
            total(id_, "stable", one, 9),
            total(id_, "canary", other, 1),
            *(total(id_, "stable", one, 9, version=version) for version in (2, 3, 4)),
        )
        traffic.sweep(database)
        assert len(kept(database)) == 5
        with database.writing() as session:
            for row in session.scalars(select(ArmCount).where(ArmCount.version != 3)):
                row.updated_at = utc_now() - timedelta(days=31)
        traffic.sweep(database)
        assert kept(database) == [(1, "canary"), (1, "stable"), (3, "stable"), (4, "stable")]


def kept(database: Database) -> list[tuple[int, str]]:
    with database.reading() as session:
        return sorted((row.version, row.arm) for row in session.scalars(select(ArmCount)))


# --- settling ---------------------------------------------------------------------------------------------------------


def seen(database: Database, id_: str, one: str, other: str, *, errors: int = 0) -> None:
    figures = total(id_, "canary", other, 2000, errors=errors, compared=2000, agreed=1990)
    put_down(database, "p", total(id_, "stable", one, 9000), figures)


def moves(database: Database, id_: str) -> list[DeploymentChange]:
    """Newest first."""
    with database.reading() as session:
        return list(deployments.history(session, session.get_one(Deployment, id_)))


class TestSettle:
    def test_a_good_candidate_is_promoted(self, sqlite_database: Database) -> None:
        id_, one, other = deployed(sqlite_database, auto=ASKING)
        assert traffic.settle(sqlite_database, lambda _: True) == []
        seen(sqlite_database, id_, one, other)
        (settled,) = traffic.settle(sqlite_database, lambda _: True)
        assert (settled.deployment, settled.student_id, settled.decision.verdict) == ("live", other, "promote")
        change, before = moves(sqlite_database, id_)
        assert (change.verb, change.by, change.student_id, change.version) == ("promote", "auto", other, 2)
        assert before.student_id == one
        assert "at most" in change.reason
        assert change.reason == settled.decision.reason
        assert traffic.settle(sqlite_database, lambda _: True) == []

    def test_a_bad_one_is_ended(self, sqlite_database: Database) -> None:
        id_, one, other = deployed(sqlite_database, auto=ASKING)
        seen(sqlite_database, id_, one, other, errors=60)
        (settled,) = traffic.settle(sqlite_database, lambda _: False)
        assert settled.decision.verdict == "abort"
        change = moves(sqlite_database, id_)[0]
        assert (change.verb, change.by, change.student_id) == ("abort", "auto", one)
        with sqlite_database.reading() as session:
            ended = traffic.ended_by_auto(session, session.get_one(Deployment, id_), 1)
        assert ended == settled.decision

    def test_one_that_cannot_serve_here_is_not_promoted(self, sqlite_database: Database) -> None:
        id_, one, other = deployed(sqlite_database, auto=ASKING)
        seen(sqlite_database, id_, one, other)
        assert traffic.settle(sqlite_database, lambda student_id: student_id != other) == []
        assert len(moves(sqlite_database, id_)) == 1

    def test_nobody_who_did_not_ask_is_decided_about(self, sqlite_database: Database) -> None:
        id_, one, other = deployed(sqlite_database)
        seen(sqlite_database, id_, one, other)
        assert traffic.settle(sqlite_database, lambda _: True) == []
        assert len(moves(sqlite_database, id_)) == 1

    def test_one_whose_traffic_cannot_be_read_keeps_nobody_else_waiting(self, sqlite_database: Database) -> None:
        deployed(sqlite_database, "of-a-later-version", auto={**ASKING, "later": 1})
        id_, one, other = deployed(sqlite_database, auto=ASKING)
        seen(sqlite_database, id_, one, other)
        assert [settled.deployment for settled in traffic.settle(sqlite_database, lambda _: True)] == ["live"]

    def test_of_processes_that_settle_at_once_one_wins(self, database: Database, database_url: str) -> None:
        id_, one, other = deployed(database, auto=ASKING)
        seen(database, id_, one, other)
        processes = [Database(database_url) for _ in range(4)]
        at_once = threading.Barrier(len(processes))
        settled: list[traffic.Settled] = []

        def healthy(_: str) -> bool:
            at_once.wait(30)  # every one of them has decided before any of them moves
            return True

        threads = [
            threading.Thread(target=lambda each=each: settled.extend(traffic.settle(each, healthy)))
            for each in processes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in processes:
            each.close()
        assert len(settled) == 1
        assert [change.verb for change in moves(database, id_)] == ["promote", "put"]
