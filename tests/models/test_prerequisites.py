"""`models.prerequisites`: which columns a spec names, and where."""

from typing import Any

import pytest

from models import specs
from models.prerequisites import _columns


def columns(task: dict[str, Any], *teachers: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    body = {
        "task": task,
        "dataset": {"id": "ds_1"},
        "teachers": list(teachers) or [{"kind": "local", "model": "file:teacher"}],
        "student": {"kind": "pretrained", "model": "file:student"},
        **more,
    }
    return list(_columns(specs.parse_job(body)))


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "text-classification", "text": "a", "label": "b"},
        {"kind": "text-classification", "text": "a", "text_pair": "b", "label": "c", "multi_label": True},
        {"kind": "text-regression", "text": "a", "target": "b"},
        {"kind": "text-regression", "text": "a", "text_pair": "b", "target": "c"},
        {"kind": "token-classification", "tokens": "a", "tags": "b"},
        {"kind": "question-answering", "question": "a", "context": "b", "answers": "c"},
    ],
)
def test_every_column_of_a_task(task: dict[str, Any]) -> None:
    named = {name: value for name, value in task.items() if name not in {"kind", "multi_label"}}
    assert columns(task) == [(f"/task/{name}", value) for name, value in named.items()]


def test_recorded_answers() -> None:
    task = {"kind": "text-classification", "text": "a", "label": "b"}
    recorded = [{"kind": "recorded", "logits": "z"}, {"kind": "recorded", "probabilities": "p"}]
    assert columns(task, *recorded)[2:] == [("/teachers/0/logits", "z"), ("/teachers/1/probabilities", "p")]


def test_slices() -> None:
    task = {"kind": "text-classification", "text": "a", "label": "b"}
    named = columns(task, evaluation={"slices": ["language", "source"]})[2:]
    assert named == [("/evaluation/slices/0", "language"), ("/evaluation/slices/1", "source")]
