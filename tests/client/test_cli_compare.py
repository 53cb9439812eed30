"""`limbeck compare`, of jobs and students."""

import copy
from pathlib import Path
from typing import Any

import pytest

from limbeck import Client
from limbeck.cli.comparing import helped
from models.tables import Student
from tests.client.conftest import Cli, publish
from tests.client.stand_ins import REPORT, ScriptedWorker, Service


@pytest.fixture
def better(service: Service, student_folder: Path) -> str:
    """A student that is better and larger than the one of `student`; its id."""
    id_ = publish(service, student_folder)
    report: dict[str, Any] = copy.deepcopy(REPORT)
    report["metric"] = "accuracy"
    report["verdict"] = "The other one is better."
    report["arms"]["distilled"] |= {"accuracy": 0.76, "accuracy_interval": [0.74, 0.78], "bytes": 9_000_000}
    report["comparisons"]["gain_over_control"] = {"value": 0.04, "low": 0.01, "high": 0.07}
    with service.database.writing() as session:
        row = session.get(Student, id_)
        assert row is not None
        row.report = report
    return id_


def _cells(out: str, id_: str) -> str:
    return next(line for line in out.splitlines() if line.startswith(id_))


def test_students_side_by_side(cli: Cli, student: str, better: str) -> None:
    done = cli("compare", student, better)
    assert done.code == 0
    worse, best = _cells(done.out, student), _cells(done.out, better)
    assert "76.00 % [74.0, 78.0] ★" in best
    assert "+4.00 [+1.00, +7.00] ★" in best
    assert "yes" in best
    assert "7.0 MB ★" in worse
    assert "74.50 %" in worse
    assert "not shown" in worse
    assert "holds" in worse
    assert f"{better}  The other one is better." in done.out
    assert "0.51 ms ★" not in done.out  # both are as fast


def test_a_job_that_runs_beside_a_student(
    service: Service, cli: Cli, client: Client, spec: dict[str, Any], student: str
) -> None:
    job = client.jobs.submit(spec)
    worker = ScriptedWorker(service, job.id)
    worker.claim()
    worker.progress()
    done = cli("compare", job.id, student, "--metric", "loss")
    assert done.code == 0
    assert "distil 50%" in _cells(done.out, job.id)
    curve = [line for line in done.out.splitlines() if line.startswith(job.id)][-1]
    assert "█▁" in curve
    assert curve.split()[-2:] == ["0.7000", "0.6000"]
    document = cli("compare", job.id, student, "--metric", "loss", "--json").json
    assert [one["id"] for one in document["data"]] == [job.id, student]
    assert document["data"][1]["score"] == 0.745
    assert document["curves"][job.id] == {"distilled": {"loss": [0.7, 0.6]}}
    assert "no points of nothing" in cli("compare", job.id, student, "--metric", "nothing").out


def test_what_cannot_be_compared(cli: Cli, student: str) -> None:
    assert "two ids or more" in cli("compare", student).err
    assert "two ids or more" in cli("compare", student, student).err
    assert "neither a job" in cli("compare", student, "ds_1").err
    missing = cli("compare", student, "job_nope")
    assert missing.code == 1
    assert "limbeck jobs list" in missing.err


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ({"low": 0.01, "high": 0.02}, "yes"),
        ({"low": -0.02, "high": -0.01}, "no"),
        ({"low": -0.01, "high": 0.01}, "not shown"),
        ({"value": 0.1}, "not shown"),
        (None, "not shown"),
    ],
)
def test_whether_distilling_helped(gain: dict[str, float] | None, words: str) -> None:
    assert helped(gain) == words
