"""Lists of any length: how they are cut, and what is made of the answers."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal
from hypothesis import given
from hypothesis import strategies as st

from limbeck import ApiError, Client
from limbeck.predicting import MOST_INPUTS, cut, joined
from limbeck.predictions import Label, Predictions
from tests.client.awaited import awaited
from tests.client.conftest import publish
from tests.client.scripts import Answer, Script
from tests.client.stand_ins import Service


@pytest.fixture(params=["blocking", "awaited"])
def caller(request: pytest.FixtureRequest, script: Script, portal: BlockingPortal) -> Iterator[Client]:
    if request.param == "blocking":
        with Client(script.url, "lk_secret", timeout=5) as client:
            yield client
    else:
        with awaited(portal, script.url, "lk_secret", timeout=5) as client:
            yield client


@given(st.lists(st.text(max_size=6)), st.integers(1, 5), st.integers(1, 40))
def test_nothing_is_lost_and_no_body_is_too_large(inputs: list[str], most: int, most_bytes: int) -> None:
    bodies = cut(inputs, most, most_bytes)
    assert [one for body in bodies for one in body] == inputs
    for body in bodies:
        assert len(body) <= most
        size = len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
        assert len(body) <= 1 or size <= most_bytes + 1  # the brackets, less the last comma


def echo(_: str, body: bytes) -> Answer:
    """Each text as its own label."""
    inputs = json.loads(body)["inputs"]
    return 200, {"X-Limbeck-Student": "st_1"}, [[{"label": text, "score": 1.0}] for text in inputs]


def labels(answers: Predictions) -> list[str]:
    return [one[0].label for one in answers]


def test_a_long_list_is_sent_as_several_and_answered_in_order(script: Script, caller: Client) -> None:
    script.by = echo
    texts = [str(number) for number in range(3 * MOST_INPUTS + 1)]
    answers = caller.predict("sentiment", texts)
    assert labels(answers) == texts
    assert answers.student == "st_1"
    assert sorted(len(json.loads(body)["inputs"]) for _, _, _, body in script.seen) == [1, *[MOST_INPUTS] * 3]


def test_no_more_than_so_many_are_under_way(script: Script, caller: Client) -> None:
    lock = threading.Lock()
    now, most = 0, 0

    def slow(path: str, body: bytes) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return echo(path, body)

    script.by = slow
    caller.predict("sentiment", ["x"] * (5 * MOST_INPUTS), at_once=2)
    assert most == 2


@pytest.mark.parametrize(
    "refusal",
    [
        (413, {}, {"code": "too_large", "detail": "too large"}),
        (422, {}, {"code": "invalid", "detail": "x", "errors": [{"pointer": "/inputs", "code": "too_many_inputs"}]}),
    ],
)
def test_a_service_that_takes_less_is_sent_less(script: Script, caller: Client, refusal: Answer) -> None:
    script.by = lambda path, body: refusal if len(json.loads(body)["inputs"]) > 3 else echo(path, body)
    texts = [str(number) for number in range(11)]
    assert labels(caller.predict("sentiment", texts)) == texts


def test_one_that_is_too_large_alone_is_an_error(script: Script, caller: Client) -> None:
    script.by = lambda path, body: (413, {}, {"code": "too_large", "detail": "too large"})
    with pytest.raises(ApiError, match="too large"):
        caller.predict("sentiment", ["x"] * 4)


def test_a_problem_says_where_in_the_whole_list_it_is(script: Script, caller: Client) -> None:
    def picky(path: str, body: bytes) -> Answer:
        inputs = json.loads(body)["inputs"]
        if "bad" not in inputs:
            return echo(path, body)
        pointer = f"/inputs/{inputs.index('bad')}/text"
        return 422, {}, {"code": "invalid", "detail": "no", "errors": [{"pointer": pointer, "message": "is bad"}]}

    script.by = picky
    with pytest.raises(ApiError) as caught:
        caller.predict("sentiment", [*["good"] * (MOST_INPUTS + 7), "bad"])
    assert [problem.pointer for problem in caught.value.problems] == [f"/inputs/{MOST_INPUTS + 7}/text"]


def test_a_queue_that_this_call_has_filled_is_waited_for(script: Script, caller: Client) -> None:
    """More often than a single request is tried again."""
    refused = iter(range(7))

    def full(path: str, body: bytes) -> Answer:
        if len(json.loads(body)["inputs"]) == 1 and next(refused, None) is not None:
            return 429, {"Retry-After": "0"}, {"code": "predict_queue_full", "detail": "full"}
        return echo(path, body)

    script.by = full
    assert len(caller.predict("sentiment", ["x"] * (MOST_INPUTS + 1))) == MOST_INPUTS + 1


def part(id_: str | None, count: int = 1, **more: Any) -> Predictions:
    return Predictions(data=[[Label("a", 1.0)]] * count, prediction_id=id_, raw=[None] * count, **more)


def test_what_several_answers_have_in_common() -> None:
    whole = joined([part("pr_1", 2, student="st_1", arm="stable"), part("pr_2", student="st_2", arm="stable")])
    assert (whole.student, whole.arm, len(whole)) == (None, "stable", 3)
    assert whole.ids == ["pr_1.0", "pr_1.1", "pr_2"]
    assert joined([part("pr_1"), part(None)]).ids == []
    assert joined([part(None, arm="stable"), part(None, arm="canary")]).arm == "mixed"
    assert joined([whole]) is whole


def test_against_the_service(service: Service, client: Client, student_folder: Path) -> None:
    """With its own limits: of inputs, and of those that may wait."""
    client.deployments.put("long-lists", publish(service, student_folder))
    texts = [f"text {number % 7}" for number in range(MOST_INPUTS + 100)]
    answers = client.predict("long-lists", texts, top_k=1)
    alone = {text: client.predict("long-lists", text, top_k=1)[0] for text in set(texts)}
    assert [one[0].label for one in answers] == [alone[text][0].label for text in texts]
    client.deployments.delete("long-lists")


class TestTrial:
    def test_a_student_and_its_teacher(self, client: Client, student: str) -> None:
        found = client.students.predict(student, ["a good day", "a bad one"], top_k=1)
        assert [len(labels) for labels in found.student] == [1, 1]
        assert found.teacher is None
        assert found.teacher_reason
