"""What the client makes of the answers of every kind of task, by hand and at the command line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck import Client
from limbeck.errors import UnexpectedAnswer
from limbeck.predictions import Entity, Label, Span, answers_of
from models.answers import Kind
from tests.client.conftest import Cli, publish
from tests.client.stand_ins import Service

LABEL = {"label": "good", "score": 0.5}
ENTITY = {"entity_group": "place", "score": 0.5, "word": "Rome", "start": 3, "end": 7}
TOKEN = {"entity": "B-place", "score": 0.5, "index": 2, "word": "rome", "start": 3, "end": 7}
SPAN = {"answer": "Rome", "score": 0.5, "start": 3, "end": 7}


@pytest.mark.parametrize(
    ("answers", "single", "expected"),
    [
        ([[LABEL]], True, [[Label("good", 0.5)]]),
        ([[LABEL], [LABEL, LABEL]], False, [[Label("good", 0.5)], [Label("good", 0.5)] * 2]),
        ([ENTITY], True, [[Entity("place", 0.5, "Rome", 3, 7)]]),
        ([[ENTITY], []], False, [[Entity("place", 0.5, "Rome", 3, 7)], []]),
        ([], True, [[]]),
        ([TOKEN], True, [[Entity("B-place", 0.5, "rome", 3, 7, index=2)]]),
        (SPAN, True, [[Span("Rome", 0.5, 3, 7)]]),
        ([SPAN, SPAN], True, [[Span("Rome", 0.5, 3, 7)] * 2]),
        ([SPAN, SPAN], False, [[Span("Rome", 0.5, 3, 7)], [Span("Rome", 0.5, 3, 7)]]),
        ([[SPAN, SPAN]], False, [[Span("Rome", 0.5, 3, 7)] * 2]),
    ],
)
def test_a_list_for_each_input(answers: Any, single: bool, expected: Any) -> None:
    assert answers_of(answers, single=single) == expected


@pytest.mark.parametrize("answers", [3, None, "x", {}, [1], [[{"label": "good"}]], [{**SPAN, "start": "3"}]])
@pytest.mark.parametrize("single", [True, False])
def test_what_is_no_answer(answers: Any, single: bool) -> None:
    with pytest.raises(UnexpectedAnswer):
        answers_of(answers, single=single)


Deploy = Callable[[Kind], str]


@pytest.fixture
def deploy(service: Service, client: Client, answerers: dict[Kind, Path]) -> Iterator[Deploy]:
    """Deploy a student of a kind; the deployment's name, which is gone after the test."""
    names: list[str] = []

    def deployed(kind: Kind) -> str:
        names.append(f"{kind}-{len(names)}")
        client.deployments.put(names[-1], publish(service, answerers[kind]))
        return names[-1]

    yield deployed
    for name in names:
        client.deployments.delete(name)


class TestClient:
    def test_a_pair(self, client: Client, deploy: Deploy) -> None:
        name = deploy("text-regression")
        pair = {"text": "a good day", "text_pair": "a bad one"}
        one = client.predict(name, pair)
        assert isinstance(one[0][0], Label)
        assert one[0][0].label == "target"
        assert list(client.predict(name, [pair, pair])) == [one[0], one[0]]

    def test_entities(self, client: Client, deploy: Deploy) -> None:
        name = deploy("token-classification")
        text = "a really good service on monday"
        one = client.predict(name, text)
        assert len(one) == 1
        assert all(isinstance(entity, Entity) and text[entity.start : entity.end] == entity.word for entity in one[0])
        assert list(client.predict(name, [text])) == [one[0]]
        assert all(entity.index for entity in client.predict(name, text, aggregation_strategy="none")[0])

    def test_answers(self, client: Client, deploy: Deploy) -> None:
        name = deploy("question-answering")
        question = {"question": "was it good?", "context": "the service was great"}
        [[best]] = client.predict(name, question)
        assert isinstance(best, Span)
        assert best.answer == question["context"][best.start : best.end]
        several = client.predict(name, question, top_k=3)
        assert len(several) == 1
        assert several[0][0] == best
        assert len(several[0]) == 3


class TestCommand:
    def test_a_pair(self, cli: Cli, deploy: Deploy) -> None:
        name = deploy("text-regression")
        shown = cli("predict", name, "a good day", "--text-pair", "a bad one").out
        assert shown.splitlines()[:2] == ["a good day", "a bad one"]
        assert "target" in shown

    def test_entities(self, cli: Cli, deploy: Deploy) -> None:
        name = deploy("token-classification")
        [found] = cli("predict", name, "a really good service", "--json").json
        shown = cli("predict", name, "a really good service").out
        assert all(f"{entity['word']} ({entity['entity_group']})" in shown for entity in found)

    def test_a_question(self, cli: Cli, deploy: Deploy) -> None:
        name = deploy("question-answering")
        asked = ("predict", name, "--question", "was it good?", "--context")
        [found] = cli(*asked, "the service was great", "--json").json
        assert found["answer"] in cli(*asked, "the service was great").out
        assert cli(*asked, "-", "--json", stdin="the service was great").json == [found]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--question", "who?"),
            ("--context", "me"),
            ("a text", "--question", "who?", "--context", "me"),
            ("--question", "who?", "--context", "me", "--text-pair", "b"),
        ],
    )
    def test_half_a_question(self, cli: Cli, arguments: tuple[str, ...]) -> None:
        done = cli("predict", "nothing", *arguments)
        assert done.code == 1
        assert "give a question with its context" in done.err
