"""A service that is a little older or newer is understood; of one that is far away the caller is warned, no more."""

import dataclasses
import warnings
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from limbeck import Client, VersionsApart, __version__
from limbeck.objects import Deployment, Job, JobError, Student, TrafficArm, read
from limbeck.versions import are_apart
from tests.client.scripts import Script
from tests.client.stand_ins import Service

AT = "2026-11-24T00:00:00Z"
FEWEST = {
    Job: {"id": "job_1", "name": "", "status": "queued", "created_at": AT},
    Student: {"id": "st_1", "name": "", "job_id": "job_1", "hash": "0" * 64, "created_at": AT},
    Deployment: {"id": "dep_1", "name": "a", "student": "st_1", "version": 1, "created_at": AT, "updated_at": AT},
    TrafficArm: {"arm": "stable", "student": "st_1", "calls": 0, "inputs": 0, "errors": 0},
}


@pytest.mark.parametrize("kind", FEWEST)
def test_a_service_that_says_less(kind: type[Any]) -> None:
    """Every field that came later has a default."""
    found = read(kind, FEWEST[kind])
    for field in dataclasses.fields(kind):
        if field.name not in {"raw", *FEWEST[kind]}:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            assert getattr(found, field.name) == default


@pytest.mark.parametrize("kind", FEWEST)
def test_a_service_that_says_more(kind: type[Any]) -> None:
    more = {**FEWEST[kind], "object": "thing", "mood": {"now": "good"}}
    found = read(kind, more)
    assert found == read(kind, FEWEST[kind])
    assert found.raw["mood"] == {"now": "good"}
    assert not hasattr(found, "mood")


def test_what_is_inside_may_say_more_too() -> None:
    error = {"code": "diverged", "message": "it did", "since": AT}
    found = read(Job, {**FEWEST[Job], "status": "some new status", "error": error})
    assert isinstance(found.error, JobError)
    assert found.error.raw["since"] == AT
    assert found.status == "some new status"
    assert not found.ended
    assert found.created_at == datetime(2026, 11, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    ("own", "theirs", "apart"),
    [
        ("1.4.0", "1.4.9", False),
        ("1.4.0", "1.5.0", False),
        ("1.4.0", "1.3.2rc1", False),
        ("1.4.0", "1.6.0", True),
        ("1.4.0", "1.2.0", True),
        ("1.4.0", "2.4.0", True),
        ("0", "2.4.0", False),
        ("1.4.0", "unknown", False),
    ],
)
def test_how_far_is_too_far(own: str, theirs: str, apart: bool) -> None:
    assert are_apart(own, theirs) is apart


def test_one_warning_for_a_service_that_is_far_away(script: Script) -> None:
    script.answers = [(200, {"X-Limbeck-Version": "99.0.0"}, FEWEST[Job])]
    with Client(script.url, "k") as client:
        with pytest.warns(VersionsApart, match=rf"99\.0\.0 and this client is {__version__}"):
            assert client.jobs.get("job_1").id == "job_1"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.jobs.get("job_1")


def test_every_answer_says_the_version(service: Service) -> None:
    for path in ("/healthz", "/jobs", "/nowhere"):
        assert are_apart(httpx2.get(f"{service.url}{path}").headers["x-limbeck-version"], __version__) is False
