"""The log of a deployment's capture: its budget, its age, and the truth about its rows."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from models import captures
from models.captures import Kept, Log
from models.database import Database
from models.specs import Capture
from models.tables import Deployment, Prediction, Student, new_id, utc_now


def deployment(database: Database, name: str = "default") -> str:
    """The id of a new deployment with a student that has no artifact."""
    student = Student(
        id=new_id("st"), owner="default", job_id=new_id("job"), hash="", artifact="", manifest={}, report={}
    )
    row = Deployment(id=new_id("dep"), owner="default", name=name, student_id=student.id)
    with database.writing() as session:
        session.add(student)
        session.flush()
        session.add(row)
    return row.id


def kept(deployment_id: str, count: int = 1, *, text: str = "a", **capture: Any) -> list[Kept]:
    answer = [{"label": "a", "score": 1.0}]
    return [
        Kept(
            id=new_id("pr"),
            owner="default",
            deployment_id=deployment_id,
            student_id="st_1",
            arm="stable",
            input=text,
            answer=answer,
            at=utc_now(),
            capture=Capture(**capture),
        )
        for _ in range(count)
    ]


def ids(database: Database) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(Prediction.id).order_by(Prediction.id)))


def test_a_row_is_what_was_kept(database: Database) -> None:
    [one] = kept(deployment(database), text="ä", days=2)
    Log(database).write([one])
    with database.reading() as session:
        row = session.scalars(select(Prediction)).one()
    assert (row.id, row.input, row.answer, row.arm, row.label) == (one.id, "ä", one.answer, "stable", None)
    assert row.expires_at - row.created_at == timedelta(days=2)
    assert row.bytes == len('"ä"'.encode()) + len('[{"label": "a", "score": 1.0}]')


def test_above_max_rows_the_oldest_go(database: Database) -> None:
    log, full, other = Log(database), deployment(database), deployment(database, "other")
    rows = [one for _ in range(4) for one in kept(full, 2, max_rows=5)]
    rest = kept(other, 7)
    for one in [*rest, *rows]:
        log.write([one])
    assert ids(database) == sorted([*(one.id for one in rest), *(one.id for one in rows[-5:])])


def test_above_max_bytes_the_oldest_go(database: Database) -> None:
    deployment_id = deployment(database)
    rows = kept(deployment_id, 5, text="x" * 400, max_bytes=1024)
    Log(database).write(rows)
    assert ids(database) == [one.id for one in rows[-2:]]


def test_a_budget_that_shrank_holds_from_the_next_write_on(database: Database) -> None:
    deployment_id = deployment(database)
    Log(database).write(kept(deployment_id, 6))
    newest = kept(deployment_id, max_rows=2)
    Log(database).write(newest)
    assert len(ids(database)) == 2
    assert ids(database)[-1] == newest[0].id


def test_a_large_log_is_measured_now_and_then(database: Database) -> None:
    """At a hundredth of the budget, so that it is over it by no more."""
    log, deployment_id = Log(database), deployment(database)
    log.write(kept(deployment_id, 300, max_rows=300))
    log.write(kept(deployment_id, 2, max_rows=300))
    assert len(ids(database)) == 302
    log.write(kept(deployment_id, 1, max_rows=300))
    assert len(ids(database)) == 300


def test_of_a_deployment_that_is_gone_nothing_is_written(database: Database) -> None:
    gone, there = deployment(database, "gone"), deployment(database, "there")
    with database.writing() as session:
        session.delete(session.get_one(Deployment, gone))
    rows = kept(there)
    Log(database).write([*kept(gone), *rows])
    assert ids(database) == [rows[0].id]


def test_deleting_the_deployment_takes_its_rows_along(database: Database) -> None:
    deployment_id = deployment(database)
    Log(database).write(kept(deployment_id, 3))
    with database.writing() as session:
        session.delete(session.get_one(Deployment, deployment_id))
    assert ids(database) == []


def test_what_has_expired_is_neither_seen_nor_kept(database: Database) -> None:
    deployment_id = deployment(database)
    old, new = kept(deployment_id, 2)
    Log(database).write([old, new])
    assert captures.expire(database) == 0
    with database.writing() as session:
        session.execute(update(Prediction).where(Prediction.id == old.id).values(expires_at=utc_now()))
    with database.reading() as session:
        assert [row.id for row in session.scalars(captures.captured(deployment_id))] == [new.id]
    assert captures.expire(database) == 1
    assert ids(database) == [new.id]


def test_pages_have_every_row_once_the_oldest_first(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "_PAGE_ROWS", 3)
    deployment_id = deployment(sqlite_database)
    rows = kept(deployment_id, 7)
    Log(sqlite_database).write([*rows, *kept(deployment(sqlite_database, "other"))])
    with sqlite_database.reading() as session:
        found: list[Sequence[Prediction]] = list(captures.pages(session, deployment_id))
    assert [[row.id for row in page] for page in found] == [
        [one.id for one in rows[start : start + 3]] for start in (0, 3, 6)
    ]


def test_a_label_and_another_one(database: Database) -> None:
    deployment_id = deployment(database)
    [one, rest] = kept(deployment_id, 2)
    Log(database).write([one, rest])
    times = []
    for label in ([], [], ["a"]):
        with database.writing() as session:
            row = session.get_one(Prediction, one.id)
            captures.label(row, label)
            times.append(row.labelled_at)
    assert times[0] == times[1] != times[2]
    with database.reading() as session:
        assert session.get_one(Prediction, one.id).label == ["a"]
        for labelled, expected in ((True, one.id), (False, rest.id)):
            statement = captures.captured(deployment_id, labelled=labelled)
            assert [row.id for row in session.scalars(statement)] == [expected]


@pytest.mark.parametrize(
    "id_",
    [
        "pr_01hzzzzzzz" + "0" * 16,
        "pr_",
        "pr_" + "l" * 26,
    ],
)
def test_an_old_id_and_no_id_are_not_recent(id_: str) -> None:
    assert not captures.is_recent(id_, 600.0)


def test_an_id_says_when_it_was_made() -> None:
    made = new_id("pr")
    assert captures.is_recent(made, 600.0)
    assert captures.is_recent(made + ".17", 600.0)
    assert not captures.is_recent(new_id("ds"), 600.0)
