"""Whether two answers say the same, and how sure one is."""

from typing import Any

import numpy as np
import pytest

from models.answers import Kind, agree, sureness


def labels(**scores: float) -> list[dict[str, Any]]:
    """Best first."""
    return [
        {"label": name, "score": score} for name, score in sorted(scores.items(), key=lambda one: one[1], reverse=True)
    ]


def entity(kind: str, start: int, end: int, score: float = 0.9) -> dict[str, Any]:
    return {"entity_group": kind, "score": score, "word": "…", "start": start, "end": end}


def token(kind: str, start: int, end: int) -> dict[str, Any]:
    return {"entity": kind, "score": 0.9, "index": 1, "word": "…", "start": start, "end": end}


def span(answer: str, score: float = 0.9) -> dict[str, Any]:
    return {"answer": answer, "score": score, "start": 0, "end": len(answer)}


@pytest.mark.parametrize(
    ("kind", "first", "second", "expected"),
    [
        ("text-classification", labels(a=0.9, b=0.1), labels(a=0.6, b=0.4), True),
        ("text-classification", labels(a=0.9, b=0.1), labels(a=0.4, b=0.6), False),
        ("text-classification", labels(a=3.0), labels(a=0.1, b=0.05), True),
        ("text-regression", labels(target=0.30), labels(target=0.34), True),
        ("text-regression", labels(target=0.30), labels(target=0.36), False),
        ("text-regression", labels(target=-100.0), labels(target=-104.0), True),
        ("text-regression", labels(target=-100.0), labels(target=-106.0), False),
        ("text-regression", labels(target=float("nan")), labels(target=0.1), False),
        ("token-classification", [], [], True),
        ("token-classification", [entity("place", 3, 9)], [entity("place", 3, 9, 0.6)], True),
        ("token-classification", [entity("place", 3, 9)], [entity("person", 3, 9)], False),
        ("token-classification", [entity("place", 3, 9)], [entity("place", 3, 8)], False),
        ("token-classification", [entity("place", 3, 9)], [], False),
        ("token-classification", [token("B-place", 3, 9)], [token("B-place", 3, 9)], True),
        ("token-classification", [token("B-place", 3, 9)], [token("I-place", 3, 9)], False),
        ("question-answering", span("here"), span("here", 0.4), True),
        ("question-answering", span("here"), span(""), False),
        ("question-answering", [span("here"), span("there")], [span("here"), span("")], True),
    ],
)
def test_agree(kind: Kind, first: Any, second: Any, expected: bool) -> None:
    assert agree(first, second, kind) is expected
    assert agree(second, first, kind) is expected


def test_any_number_of_labels_agree_if_all_do() -> None:
    one, other = labels(a=0.9, b=0.6, c=0.1), labels(a=0.9, b=0.4, c=0.1)
    assert agree(one, other, "text-classification")  # type: ignore[arg-type]
    assert not agree(one, other, "text-classification", any_of=True)  # type: ignore[arg-type]
    assert agree(one, labels(a=0.6, b=0.9, c=0.4), "text-classification", any_of=True)  # type: ignore[arg-type]


NOTHING = float("nan")


@pytest.mark.parametrize(
    ("kind", "raw", "any_of", "expected"),
    [
        ("text-classification", [[0.0, 0.0]], False, 0.5),
        ("text-classification", [[np.log(3.0), 0.0]], False, 0.75),
        ("text-classification", [[1000.0, 0.0]], False, 1.0),
        ("text-classification", [[np.log(9.0), -np.log(3.0)]], True, 0.75),
        ("text-classification", [[NOTHING, 0.0]], False, NOTHING),
        ("text-regression", [[0.1]], False, 1.0),
        ("token-classification", [[np.log(9.0), 0.0], [0.0, np.log(3.0)], [NOTHING, NOTHING]], False, 0.75),
        ("token-classification", np.zeros((0, 2)), False, 1.0),
    ],
)
def test_sureness(kind: Kind, raw: Any, any_of: bool, expected: float) -> None:
    found = sureness(kind, [np.asarray(raw, np.float32)], [], any_of=any_of)
    assert found == pytest.approx(expected, nan_ok=True)


def test_sureness_of_a_question_is_the_score_of_its_best_answer() -> None:
    several: Any = [span("here", 0.7), span("there", 0.2)]
    assert sureness("question-answering", [], several) == sureness("question-answering", [], several[0]) == 0.7
