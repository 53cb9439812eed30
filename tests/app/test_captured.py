"""What is a true answer of each kind of task, and what a student's answer is as a label."""

from collections.abc import Mapping
from typing import Any

import pytest

from app.uploads.captured import Row, Task
from models.errors import Conflict, Invalid
from models.inputs import Input, Question, as_json
from models.tables import utc_now
from tests.factories import LABELS
from tests.students import TAGS

SPECS: Mapping[str, dict[str, Any]] = {
    "one": {"kind": "text-classification", "text": "text", "text_pair": None, "label": "label"},
    "many": {"kind": "text-classification", "text": "text", "label": "labels", "multi_label": True},
    "number": {"kind": "text-regression", "text": "text", "target": "score"},
    "words": {"kind": "token-classification", "tokens": "tokens", "tags": "tags"},
    "span": {"kind": "question-answering", "question": "question", "context": "context", "answers": "answers"},
}
TASKS: Mapping[str, Task] = {
    name: Task.of({"task": spec["kind"], "labels": TAGS if name == "words" else LABELS, "spec": {"task": spec}})
    for name, spec in SPECS.items()
}
INPUTS: Mapping[str, Input] = {
    "one": "a good day",
    "many": "a good day",
    "number": "a good day",
    "words": "my good  day",
    "span": Question("is it good", "the day was good"),
}
GIVEN = {name: as_json(item) for name, item in INPUTS.items()}


@pytest.mark.parametrize(
    ("task", "told", "kept"),
    [
        ("one", "positive", "positive"),
        ("many", ["positive", "negative", "positive"], ["negative", "positive"]),
        ("many", [], []),
        ("number", 2, 2.0),
        ("words", ["O", "B-person", "I-person"], ["O", "B-person", "I-person"]),
        ("words", [], ["O", "O", "O"]),
        ("words", [{"entity_group": "place", "start": 3, "end": 12}], ["O", "B-place", "I-place"]),
        ("span", {"text": ["day"], "answer_start": [4]}, {"text": ["day"], "answer_start": [4]}),
        ("span", {"text": [], "answer_start": []}, {"text": [], "answer_start": []}),
        ("span", "was good", {"text": ["was good"], "answer_start": [8]}),
        ("span", "", {"text": [], "answer_start": []}),
    ],
)
def test_a_true_answer_is_kept_as_the_column_has_it(task: str, told: Any, kept: Any) -> None:
    assert TASKS[task].truth(told, GIVEN[task]) == kept


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("one", "good"),
        ("one", 1),
        ("one", None),
        ("one", ["positive"]),
        ("many", "positive"),
        ("many", ["good"]),
        ("number", "2"),
        ("number", True),
        ("words", ["O", "O"]),
        ("words", ["O", "O", "B-thing"]),
        ("words", [{"entity_group": "thing", "start": 0, "end": 2}]),
        ("words", [{"entity_group": "place", "start": 2, "end": 2}]),
        ("words", "O O O"),
        ("span", {"text": ["day"], "answer_start": [5]}),
        ("span", {"text": ["day"], "answer_start": []}),
        ("span", {"text": "day"}),
        ("span", "night"),
        ("span", 4),
    ],
)
def test_what_is_no_answer_of_the_task(task: str, told: Any) -> None:
    with pytest.raises(Invalid) as caught:
        TASKS[task].truth(told, GIVEN[task])
    assert [(problem.pointer, problem.code) for problem in caught.value.problems] == [("/label", "bad_label")]


def test_tags_without_a_beginning() -> None:
    """A student that knows I- alone, or names without a prefix."""
    entities = [{"entity_group": "place", "start": 3, "end": 11}]
    for labels, expected in ((("O", "I-place"), "I-place"), (("O", "place"), "place")):
        task = Task.of({"task": "token-classification", "labels": labels})
        assert task.truth(entities, "my good day") == ["O", expected, expected]


def test_two_entities_side_by_side_each_begin() -> None:
    entities = [{"entity_group": "place", "start": 0, "end": 2}, {"entity_group": "place", "start": 3, "end": 7}]
    assert TASKS["words"].truth(entities, "my good day") == ["B-place", "B-place", "O"]


@pytest.mark.parametrize(
    ("task", "answer", "label", "score"),
    [
        (
            "many",
            [
                {"label": "positive", "score": 0.9},
                {"label": "negative", "score": 0.8},
                {"label": "neutral", "score": 0.3},
            ],
            ["negative", "positive"],
            0.7,
        ),
        ("many", [{"label": "neutral", "score": 0.1}], [], 0.9),
        ("number", [{"label": "score", "score": 2.5}], 2.5, None),
        (
            "words",
            [{"entity_group": "person", "score": 0.7, "word": "good day", "start": 3, "end": 11}],
            ["O", "B-person", "I-person"],
            0.7,
        ),
        (
            "words",
            [{"entity": "I-place", "score": 0.6, "index": 2, "word": "goo", "start": 3, "end": 6}],
            ["O", "I-place", "O"],
            0.6,
        ),
        ("words", [], ["O", "O", "O"], None),
        (
            "span",
            {"answer": "day", "score": 0.4, "start": 4, "end": 7},
            {"text": ["day"], "answer_start": [4]},
            0.4,
        ),
        ("span", [{"answer": "", "score": 0.4, "start": 0, "end": 0}], {"text": [], "answer_start": []}, 0.4),
    ],
)
def test_the_answer_as_a_label(task: str, answer: Any, label: Any, score: float | None) -> None:
    row = Row(GIVEN[task], answer, None, "st_1", utc_now())
    [found] = TASKS[task].rows([row], "answers", None)
    assert found[TASKS[task].label_column] == label
    assert found["captured_score" if task == "number" else "score"] == pytest.approx(score)


def test_a_student_that_does_not_say_its_task() -> None:
    for manifest in ({}, {"task": None}, {"task": "text-generation"}):
        with pytest.raises(Conflict) as caught:
            Task.of(manifest)
        assert caught.value.code == "unknown_task"
