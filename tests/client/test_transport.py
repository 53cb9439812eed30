"""What is sent again and what is not, against a server that answers as it is told to."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal

from limbeck import ApiError, Client, LimbeckError, ServiceUnreachable, UnexpectedAnswer
from tests.client.awaited import awaited
from tests.client.scripts import HALF, Script

JOB = {"id": "job_1", "name": "", "status": "queued", "created_at": "2026-11-24T00:00:00Z", "version": 1}
KEY = {
    "id": "key_1",
    "name": "",
    "owner": "default",
    "scopes": ["read"],
    "public_id": "abcdefgh",
    "created_at": "2026-11-24T00:00:00Z",
    "key": "lk_…",
}


@pytest.fixture(params=["blocking", "awaited"])
def caller(request: pytest.FixtureRequest, script: Script, portal: BlockingPortal) -> Iterator[Client]:
    if request.param == "blocking":
        with Client(script.url, "lk_secret", timeout=5) as client:
            yield client
    else:
        with awaited(portal, script.url, "lk_secret", timeout=5) as client:
            yield client


@pytest.mark.parametrize("status", [429, 503])
def test_busy_is_asked_again_after_its_pause(script: Script, caller: Client, status: int) -> None:
    script.answers = [(status, {"Retry-After": "1"}, {}), (200, {}, JOB)]
    began = time.monotonic()
    assert caller.jobs.get("job_1").id == "job_1"
    assert time.monotonic() - began >= 1.0
    assert len(script.seen) == 2


def test_busy_is_asked_again_for_what_is_not_idempotent_too(script: Script, caller: Client) -> None:
    script.answers = [(503, {"Retry-After": "0"}, {}), (201, {}, KEY)]
    assert caller.keys.create(["read"]).key == "lk_…"
    assert len(script.seen) == 2


def test_a_pause_that_is_too_long_is_the_callers_to_bear(script: Script, caller: Client) -> None:
    script.answers = [(429, {"Retry-After": "3600"}, {"code": "queue_full", "detail": "full"})]
    with pytest.raises(ApiError) as caught:
        caller.jobs.get("job_1")
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "queue_full", 3600.0)
    assert len(script.seen) == 1


def test_it_gives_up_some_time(script: Script, caller: Client) -> None:
    script.answers = [(503, {"Retry-After": "0"}, {"code": "unavailable", "detail": "away"})]
    with pytest.raises(ApiError, match="away"):
        caller.jobs.get("job_1")
    assert len(script.seen) == 5


def test_a_submission_that_broke_is_sent_again_with_the_same_key(script: Script, caller: Client) -> None:
    script.answers = [None, (201, {}, JOB)]
    caller.jobs.submit({"name": "x"})
    keys = [headers["idempotency-key"] for _, _, headers, _ in script.seen]
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_each_submission_has_its_own_key(script: Script, caller: Client) -> None:
    script.answers = [(201, {}, JOB)]
    caller.jobs.submit({})
    caller.jobs.submit({})
    caller.jobs.submit({}, idempotency_key="mine")
    keys = [headers["idempotency-key"] for _, _, headers, _ in script.seen]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_what_is_not_idempotent_is_never_sent_twice_when_the_connection_breaks(script: Script, caller: Client) -> None:
    script.answers = [None]
    with pytest.raises(ServiceUnreachable, match="broke"):
        caller.keys.create(["read"])
    with pytest.raises(ServiceUnreachable):
        caller.deployments.rollback("sentiment")
    assert len(script.seen) == 2


def test_a_put_with_a_version_is_not_repeated(script: Script, caller: Client) -> None:
    """The second try would meet the first one's success as somebody else's change."""
    script.answers = [None]
    with pytest.raises(ServiceUnreachable):
        caller.deployments.put("sentiment", "st_1", if_match=3)
    assert len(script.seen) == 1
    assert script.seen[0][2]["if-match"] == '"3"'


def test_a_deletion_whose_answer_was_lost_has_happened(script: Script, caller: Client) -> None:
    script.answers = [None, (404, {}, {"code": "not_found", "detail": "gone"})]
    caller.datasets.delete("ds_1")
    assert len(script.seen) == 2


def test_a_deletion_of_what_is_not_there_is_an_error(script: Script, caller: Client) -> None:
    script.answers = [(404, {}, {"code": "not_found", "detail": "gone"})]
    with pytest.raises(ApiError, match="gone"):
        caller.datasets.delete("ds_1")


def test_an_upload_is_whole_when_it_is_sent_again(script: Script, caller: Client, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "a,b\n" * 1000)
    script.answers = [(503, {"Retry-After": "0"}, {}), (422, {}, {"code": "invalid", "detail": "no"})]
    with pytest.raises(ApiError):
        caller.datasets.upload(path)
    first, second = (body for _, _, _, body in script.seen)
    assert len(first) == len(second) > 4000


def test_an_upload_that_broke_half_way_is_sent_again(script: Script, caller: Client, tmp_path: Path) -> None:
    """The service makes nothing of a form without its end."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\n" + b"a,b\n" * 4_000_000)
    script.answers = [HALF, (422, {}, {"code": "invalid", "detail": "no"})]
    with pytest.raises(ApiError):
        caller.datasets.upload(path)
    first, second = (body for _, _, _, body in script.seen)
    assert len(first) < path.stat().st_size < len(second)


def test_an_upload_whose_answer_was_lost_is_not_sent_again(script: Script, caller: Client, tmp_path: Path) -> None:
    """It may have made a data set already."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,b\n")
    script.answers = [None]
    with pytest.raises(ServiceUnreachable, match="broke"):
        caller.datasets.upload(path)
    assert len(script.seen) == 1


def test_a_proxys_page_is_an_error_that_can_be_read(script: Script, caller: Client) -> None:
    script.answers = [(502, {"Content-Type": "text/html"}, b"<html>Bad Gateway")]
    with pytest.raises(ApiError) as caught:
        caller.jobs.get("job_1")
    assert (caught.value.status, caught.value.code) == (502, "http_502")


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", b'"x"', b'{"id": "job_1"}', b"null"])
def test_a_stranger_at_the_address_is_told_from_the_service(script: Script, caller: Client, answer: bytes) -> None:
    script.answers = [(200, {}, answer)]
    with pytest.raises(UnexpectedAnswer):
        caller.jobs.get("job_1")
    with pytest.raises(UnexpectedAnswer):
        caller.jobs.list()
    with pytest.raises(UnexpectedAnswer):
        caller.predict("sentiment", "x")


def test_problems_come_with_their_pointers(script: Script, caller: Client) -> None:
    script.answers = [
        (
            422,
            {"X-Request-Id": "req_1"},
            {
                "title": "Invalid",
                "detail": "2 problems",
                "code": "invalid",
                "hint": "look",
                "errors": [
                    {"pointer": "/a", "message": "is required", "code": "missing"},
                    {"pointer": "", "message": "x"},
                ],
            },
        )
    ]
    with pytest.raises(ApiError) as caught:
        caller.jobs.submit({})
    error = caught.value
    assert [(item.pointer, item.message) for item in error.problems] == [("/a", "is required"), ("", "x")]
    assert (error.hint, error.request_id) == ("look", "req_1")
    assert "/a is required" in str(error)


def test_nothing_listens() -> None:
    with Client("http://127.0.0.1:9", timeout=2) as client, pytest.raises(ServiceUnreachable) as caught:
        client.jobs.list()
    assert caught.value.refused
    assert "limbeck up" in (caught.value.hint or "")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://[", "http://127.0.0.1:99999999"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(LimbeckError), Client(url, "k", timeout=1) as client:
        client.workers()


def test_a_key_that_cannot_be_sent() -> None:
    with pytest.raises(LimbeckError):
        Client("http://127.0.0.1:9", "ключ").workers()


def test_the_key_and_the_version_are_sent(script: Script, caller: Client) -> None:
    script.answers = [(200, {}, JOB)]
    caller.jobs.get("job_1")
    assert script.seen[0][2]["authorization"] == "Bearer lk_secret"
    assert script.seen[0][2]["user-agent"].startswith("limbeck/")
