"""Student and teacher together: by hand on few rows, and what must hold on many."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from worker.cascade import Answered, cascade, sureness
from worker.statistics import agreement_bound


def sure_of(label: int, probability: float) -> list[float]:
    """Logits of two labels with such a probability of `label`."""
    shares = [1 - probability, 1 - probability]
    shares[label] = probability
    return np.log(shares).tolist()


def answered(*rows: tuple[int, int, float, int]) -> Answered:
    """Rows of the teacher's label, the student's label, how sure it is of it, and the true label."""
    return Answered(
        np.array([sure_of(teacher, 0.99) for teacher, _, _, _ in rows], np.float32),
        np.array([sure_of(student, probability) for _, student, probability, _ in rows], np.float32),
        np.array([truth for *_, truth in rows], np.int64),
    )


def many(rows: int, seed: int, *, truth: bool = True) -> Answered:
    """A teacher right on 95 %, and a student that is right as often as it is sure."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    probability = rng.uniform(0.5, 0.999, rows)
    students = np.where(rng.random(rows) < probability, labels, 1 - labels)
    teachers = np.where(rng.random(rows) < 0.95, labels, 1 - labels)
    found = answered(*zip(teachers.tolist(), students.tolist(), probability.tolist(), labels.tolist(), strict=True))
    return found if truth else Answered(found.teacher, found.student, np.full(rows, -1))


def table(validation: Answered, test: Answered, **more: Any) -> list[dict[str, Any]]:
    found = cascade(validation, test, **more)
    assert found is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    rows: list[dict[str, Any]] = found["thresholds"]
    return rows


class TestByHand:
    VALIDATION = answered((0, 0, 0.9, 0), (1, 1, 0.8, 1), (0, 1, 0.7, 0), (1, 0, 0.6, 0))
    TEST = answered((0, 0, 0.95, 0), (0, 1, 0.65, 0))

    def test_each_threshold(self) -> None:
        rows = table(self.VALIDATION, self.TEST)
        assert [row["threshold"] for row in rows] == pytest.approx([0.6, 0.7, 0.8, 0.9])
        assert [row["coverage"] for row in rows] == [1.0, 0.75, 0.5, 0.25]
        # The student errs on the third row, the teacher on the fourth, and they differ on both.
        assert [row["accuracy"] for row in rows] == [0.75, 0.5, 0.75, 0.75]
        assert [row["agreement"] for row in rows] == [0.5, 0.75, 1.0, 1.0]

    def test_the_bounds_are_exact_ones(self) -> None:
        first = table(self.VALIDATION, self.TEST, confidence=0.9)[0]
        assert first["accuracy_lower_bound"] == pytest.approx(agreement_bound(3, 4, confidence=0.9))
        assert first["agreement_lower_bound"] == pytest.approx(agreement_bound(2, 4, confidence=0.9))

    def test_the_thresholds_of_the_validation_rows_are_shown_on_the_test_rows(self) -> None:
        first, second, *_ = (row["test"] for row in table(self.VALIDATION, self.TEST))
        assert first == {"coverage": 1.0, "accuracy": 0.5, "agreement": 0.5}
        assert second == {"coverage": 0.5, "accuracy": 1.0, "agreement": 1.0}


class TestManyRows:
    def test_twenty_steps_from_all_rows_to_a_twentieth(self) -> None:
        rows = table(many(400, 0), many(400, 1))
        assert [row["coverage"] for row in rows] == pytest.approx([1 - step / 20 for step in range(20)], abs=1 / 400)
        thresholds = [row["threshold"] for row in rows]
        assert thresholds == sorted(set(thresholds))

    def test_the_student_alone_is_the_first(self) -> None:
        validation = many(400, 0)
        first = table(validation, many(400, 1))[0]
        assert first["accuracy"] == (validation.student.argmax(1) == validation.truth).mean()
        assert first["agreement"] == (validation.student.argmax(1) == validation.teacher.argmax(1)).mean()

    def test_who_asks_the_teacher_more_often_agrees_more_with_it(self) -> None:
        rows = table(many(400, 0), many(400, 1))
        for measured in (rows, [row["test"] for row in rows]):
            agreements = [row["agreement"] for row in measured]
            assert agreements == sorted(agreements)
            # On rows that the student leaves to it, the teacher agrees with itself.
            assert all(row["agreement"] >= 1 - row["coverage"] for row in measured)

    def test_a_cascade_can_be_better_than_its_student(self) -> None:
        rows = table(many(2000, 0), many(2000, 1))
        assert max(row["test"]["accuracy"] for row in rows) > rows[0]["test"]["accuracy"] + 0.1

    def test_the_bounds_lie_below(self) -> None:
        for row in table(many(400, 0), many(400, 1)):
            assert row["accuracy_lower_bound"] < row["accuracy"]
            assert row["agreement_lower_bound"] < row["agreement"]


class TestEdges:
    def test_without_labels_there_is_agreement_alone(self) -> None:
        for row in table(many(100, 0, truth=False), many(100, 1, truth=False)):
            assert row["accuracy"] is row["accuracy_lower_bound"] is row["test"]["accuracy"] is None
            assert row["agreement"] > 0

    def test_a_student_that_is_always_as_sure_has_one_threshold(self) -> None:
        side = answered((0, 0, 0.9, 0), (1, 1, 0.9, 1), (0, 1, 0.9, 0))
        (row,) = table(side, side)
        assert row["coverage"] == 1.0

    def test_a_teacher_that_was_not_asked_about_every_row_has_no_cascade(self) -> None:
        whole, part = many(20, 0), many(20, 0)
        part.teacher[3] = np.nan
        assert cascade(whole, part) is None
        assert cascade(part, whole) is None

    def test_an_answer_that_is_no_number_is_left_to_the_teacher(self) -> None:
        side = many(40, 0)
        side.student[0] = np.nan
        rows = table(side, side)
        assert rows[0]["coverage"] == 39 / 40
        side.student[:] = np.nan
        assert cascade(side, side) is None

    def test_sureness_is_the_highest_probability(self) -> None:
        logits = np.array([[1, 2, 3], [4000, 0, -4000]], np.float32)
        assert sureness(logits) == pytest.approx([softmax([1, 2, 3]).max(), 1.0], abs=1e-9)
