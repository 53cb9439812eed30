"""Arms, comparisons, disagreements, the report and its verdict, for every kind of task."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import BertTokenizer

from models.inputs import Pair
from models.specs import (
    GateSpec,
    QuestionAnswering,
    SplitByShare,
    TextClassification,
    TextRegression,
    TokenClassification,
)
from tests.factories import LABELS, parquet, tiny_tokenizer
from worker import evaluation
from worker.data import Answers, Encoded
from worker.measuring import Choice, Latency, Measured
from worker.statistics import agreement_bound, metric_bound, share_interval
from worker.tasks import for_task
from worker.tasks.base import Split, TaskKind

TEXTS = for_task(TextClassification(kind="text-classification", text="text", label="label"))
MANY = for_task(TextClassification(kind="text-classification", text="text", label="label", multi_label=True))
NUMBERS = for_task(TextRegression(kind="text-regression", text="text", target="target"))


@pytest.fixture
def words() -> TaskKind:
    return for_task(TokenClassification(kind="token-classification", tokens="tokens", tags="tags"))


@pytest.fixture
def stretches() -> TaskKind:
    columns = {"question": "question", "context": "context", "answers": "answers"}
    return for_task(QuestionAnswering(kind="question-answering", **columns, max_length=24, stride=8))


def split(targets: Any, inputs: list[Any] | None = None) -> Split:
    """Rows that all have a label."""
    rows = len(targets)
    return Split(inputs or [f"text {row}" for row in range(rows)], np.asarray(targets), np.ones(rows, np.bool_))


def measured(kind: TaskKind, logits: Any, p50: float | None = 1.0, size: int | None = 100) -> Measured:
    """Raw `logits` (N, C) of whole inputs, at the given speed."""
    values = np.asarray(logits, np.float32)
    encoded = Encoded([np.zeros(1, np.int32)] * len(values), np.ones(len(values), np.int64), 0)
    latency = None if p50 is None else Latency(p50, 2 * p50, 3 * p50, 1000 / p50)
    return Measured.of(kind, Answers.whole(values), encoded, ["a text"] * len(values), bytes=size, latency=latency)


def labelled(predictions: Any, p50: float | None = 1.0) -> Measured:
    """Answers with the given predictions of three labels."""
    return measured(TEXTS, 3 * np.eye(3)[np.asarray(predictions)], p50)


def truth(rows: int) -> NDArray[np.int64]:
    return np.arange(rows) % 3


def correct(rows: int, right: int) -> NDArray[np.int64]:
    """Answers of which the first are right."""
    return (truth(rows) + (np.arange(rows) >= right)) % 3


def a_report(
    *,
    rows: int = 2000,
    teacher: int,
    distilled: int,
    control: int | None,
    gate: GateSpec | None = None,
    recorded: bool = False,
    **others: int,
) -> dict[str, Any]:
    """A report of networks that are right on so many of `rows`, each on the first ones."""
    test = split(truth(rows))
    sets: dict[str, Any] = {"teacher": teacher, "distilled": distilled, "control": control, "untrained": rows // 3}
    answers = {
        name: None if right is None else labelled(correct(rows, right), None if recorded and name == "teacher" else 1.0)
        for name, right in {**sets, **others}.items()
    }
    first = answers["teacher"]
    assert first is not None
    arms = {
        name: None
        if one is None
        else evaluation.arm(
            TEXTS,
            {"fp32": one},
            test,
            LABELS,
            parameters=(None if recorded else (100, 50)) if name == "teacher" else (10, 4),
            teacher=None if name == "teacher" else first,
        )
        for name, one in answers.items()
    }
    comparisons = evaluation.compare(
        TEXTS,
        test,
        teacher=first.predictions,
        distilled=correct(rows, distilled),
        control=None if control is None else correct(rows, control),
        others={name: correct(rows, right) for name, right in others.items()},
        confidence=0.95,
    )
    return evaluation.report(
        TEXTS,
        rows={"train": 1, "validation": 1, "test": rows},
        labels=LABELS,
        arms=arms,
        comparisons=comparisons,
        precision=Choice("fp32", "The job asks for fp32."),
        gate=gate,
        control_reason="no_labels" if control is None else None,
        counters={},
        seconds={"distil": 2.5},
        warnings=[("a_code", "a sentence")],
        device="cpu",
        others={name: arms[name] or {} for name in others},
        constant=TEXTS.constant(test, LABELS),
    )


class TestReport:
    def test_it_has_every_part(self) -> None:
        report = a_report(teacher=1800, distilled=1760, control=1700, gate=GateSpec(max_drop=0.04), direct=1740)
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        assert set(report) == {
            "format", "verdict", "metric", "rows", "labels", "arms", "others", "constant", "control_reason",
            "comparisons", "slices", "cascade", "precision", "gate", "counters", "seconds", "warnings", "host",
        }  # fmt: skip
        assert report["metric"] == "accuracy"
        assert set(report["arms"]) == {"teacher", "distilled", "control", "untrained"}
        distilled = report["arms"]["distilled"]
        assert distilled["accuracy"] == distilled["score"] == 0.88
        assert distilled["agreement"] == 0.98
        assert distilled["agreement_lower_bound"] == pytest.approx(agreement_bound(1960, 2000))
        assert distilled["accuracy_interval"][0] < 0.88 < distilled["accuracy_interval"][1]
        assert distilled["precisions"]["fp32"]["agreement_with_fp32"] == 1.0
        assert distilled["precisions"]["fp32"]["accuracy"] == distilled["precisions"]["fp32"]["score"] == 0.88
        assert distilled["divergence"] > 0
        assert distilled["score_lower_bound"] == pytest.approx(agreement_bound(1760, 2000))
        assert [row["support"] for row in distilled["per_class"]] == [667, 667, 666]
        for row in distilled["per_class"]:
            assert row["recall_interval"] == pytest.approx(
                share_interval(round(row["recall"] * row["support"]), row["support"])
            )
            assert row["recall_interval"][0] < row["recall"] < row["recall_interval"][1]
        assert (report["slices"], report["cascade"]) == ([], None)
        assert report["arms"]["teacher"]["agreement"] is None
        assert report["comparisons"]["drop"]["value"] == pytest.approx(0.02)
        assert report["comparisons"]["gain_over_control"]["value"] == pytest.approx(0.03)
        assert report["comparisons"]["mcnemar_p"]["distilled_against_control"] < 1e-6
        assert report["warnings"] == [{"code": "a_code", "message": "a sentence"}]
        assert report["host"]["cores"] >= 1

    def test_every_field_is_explained(self) -> None:
        report = a_report(teacher=1800, distilled=1760, control=1700, direct=1740)
        distilled, comparisons = report["arms"]["distilled"], report["comparisons"]
        fields = {*report, *distilled, *comparisons, *comparisons["drop"], *comparisons["mcnemar_p"]}
        fields |= {*distilled["per_class"][0], *distilled["precisions"]["fp32"], *report["precision"], *report["host"]}
        explained = (Path(__file__).parents[2] / "docs" / "report.md").read_text("utf-8")
        assert not {field for field in fields if f"`{field}`" not in explained}

    def test_other_networks_stand_beside_the_arms(self) -> None:
        report = a_report(teacher=1800, distilled=1760, control=1700, direct=1740, generation=1780)
        assert list(report["others"]) == list(report["comparisons"]["others"]) == ["direct", "generation"]
        assert report["others"]["direct"]["accuracy"] == 0.87
        assert report["comparisons"]["others"]["direct"]["value"] == pytest.approx(0.01)
        assert report["comparisons"]["others"]["generation"]["value"] == pytest.approx(-0.01)

    def test_the_best_constant_answer_stands_there_too(self) -> None:
        assert a_report(teacher=1800, distilled=1760, control=None)["constant"]["score"] == 667 / 2000

    def test_the_gate_decides_on_the_bound(self) -> None:
        bare = a_report(teacher=1800, distilled=1760, control=None)
        assert bare["gate"] == {"passed": None, "checks": []}
        # The drop is 0.02 and its one-sided upper end some 0.025.
        assert a_report(teacher=1800, distilled=1760, control=None, gate=GateSpec(max_drop=0.03))["gate"]["passed"]
        refused = a_report(teacher=1800, distilled=1760, control=None, gate=GateSpec(max_drop=0.021))
        assert not refused["gate"]["passed"]

    def test_twenty_rows_fail_a_strict_gate_however_well_it_went(self) -> None:
        def passes(gate: GateSpec) -> Any:
            return a_report(rows=20, teacher=20, distilled=20, control=20, gate=gate)["gate"]["passed"]

        assert passes(GateSpec(min_agreement=0.95)) is False
        assert passes(GateSpec(max_drop=0.04)) is False
        assert passes(GateSpec(min_agreement=0.86)) is True


class TestArm:
    def test_a_network_that_was_not_exported_has_no_size_and_speed(self) -> None:
        one = measured(TEXTS, np.eye(3), p50=None, size=None)
        untrained = evaluation.arm(TEXTS, {"fp32": one}, split(np.array([0, 1, 1])), LABELS)
        assert untrained["bytes"] is None
        assert untrained["parameters"] is None
        assert untrained["parameters_without_embeddings"] is None
        assert untrained["precisions"]["fp32"]["p50_ms"] is None

    def test_of_numbers(self) -> None:
        numbers = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
        teacher = measured(NUMBERS, numbers[:, None])
        student = measured(NUMBERS, 2 * numbers[:, None] + 1)
        arm = evaluation.arm(NUMBERS, {"fp32": student}, split(numbers), ["target"], teacher=teacher)
        assert arm["pearson"] == arm["score"] == pytest.approx(1.0)
        assert arm["mse"] == pytest.approx(np.mean((numbers + 1) ** 2))
        for name in ("accuracy_interval", "calibration_error", "agreement", "agreement_lower_bound", "divergence"):
            assert arm[name] is None
        assert arm["per_class"] == []
        # Four rows in a line: the bootstrap sees nothing else, and the floor is all that is left.
        assert arm["score_lower_bound"] == pytest.approx(0.05 ** (1 / 4))
        assert arm["precisions"]["fp32"]["score"] == pytest.approx(1.0)
        assert "accuracy" not in arm["precisions"]["fp32"]
        assert arm["precisions"]["fp32"]["agreement_with_fp32"] is None
        json.dumps(arm, allow_nan=False)

    def test_of_several_labels(self) -> None:
        targets = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], np.float32)
        teacher = measured(MANY, 6 * targets - 3)
        student = measured(MANY, np.array([[3, -3, 3], [3, -3, -3], [-3, 3, -3], [3, 3, -3]]))
        arm = evaluation.arm(MANY, {"fp32": student}, split(targets), LABELS, teacher=teacher)
        # Five labels are found, and one that is not there.
        assert arm["micro_f1"] == arm["score"] == pytest.approx(10 / 11)
        expected = metric_bound(MANY.statistics(student.predictions, split(targets)), MANY.metric)
        assert arm["score_lower_bound"] == expected < arm["score"]
        assert [row["recall_interval"] for row in arm["per_class"]] == [
            pytest.approx(share_interval(right, right)) for right in (2, 2, 1)
        ]
        assert arm["agreement"] == 0.75
        assert arm["accuracy_interval"][0] < 0.75 < arm["accuracy_interval"][1]
        assert arm["calibration_error"] is None
        assert arm["divergence"] is None

    def test_of_words(self, words: TaskKind, tmp_path: Path) -> None:
        tokens = [["ada", "met", f"alan{row}"] for row in range(20)]
        path = parquet(tmp_path / "words.parquet", tokens=tokens, tags=[["B-person", "O", "B-person"]] * 20)
        data = words.read(SplitByShare(id="ds_1", validation=2, test=8), {"ds_1": path}, seed=0)
        outside, person = data.labels.index("O"), data.labels.index("B-person")
        rows = len(data.test)
        eye = 3 * np.eye(len(data.labels), dtype=np.float32)
        right = np.stack([eye[person], eye[outside], eye[person]])
        cut = right.copy()
        cut[2] = np.nan
        places = [np.array([1, 2, 3], np.int32)] * rows
        encoded = Encoded([np.zeros(5, np.int32)] * rows, np.full(rows, 5), 0, places=places)

        def answering(parts: list[Any]) -> Measured:
            return Measured.of(words, Answers.of(parts, len(data.labels)), encoded, data.test.inputs)

        teacher, student = answering([right] * rows), answering([right] * (rows - 1) + [cut])
        arm = evaluation.arm(words, {"fp32": student}, data.test, data.labels, teacher=teacher)
        # One entity of 16 is not found: precision 1, recall 15/16.
        assert arm["f1"] == arm["score"] == pytest.approx(30 / 31)
        assert [(row["support"], row["recall_interval"]) for row in arm["per_class"]] == [(16, None)]
        assert arm["agreement"] == pytest.approx(7 / 8)
        assert arm["divergence"] == pytest.approx(0)
        assert arm["accuracy_interval"] is None
        assert arm["calibration_error"] is None
        found = evaluation.disagreements(words, data.test, data.labels, teacher=teacher, student=student)
        assert len(found) == 1
        assert found[0]["input"] == " ".join(data.test.inputs[-1].words)  # type: ignore[union-attr]
        assert found[0]["teacher"] != found[0]["student"]
        json.dumps([arm, found], allow_nan=False)

    def test_of_stretches(self, stretches: TaskKind, tmp_path: Path) -> None:
        filler = "it was just the day and the food of our service that was so usual " * 2
        contexts = [f"{filler}about number {row} a superb film" for row in range(20)]
        answers = [{"text": ["superb film"], "answer_start": [len(context) - 11]} for context in contexts]
        questions = ["the film"] * 20
        path = parquet(tmp_path / "questions.parquet", question=questions, context=contexts, answers=answers)
        data = stretches.read(SplitByShare(id="ds_1", validation=2, test=8), {"ds_1": path}, seed=0)
        encoded = stretches.encode(BertTokenizer(tokenizer_object=tiny_tokenizer()), data.test.inputs)
        assert encoded.rows is not None
        assert encoded.places is not None
        assert len(encoded) > len(data.test)
        parts = [np.zeros((len(places), 2), np.float32) for places in encoded.places]
        for window, (first, last) in zip(parts, stretches.targets(data.test, encoded).tolist(), strict=True):
            window[first, 0] = window[last, 1] = 9
        other = [window.copy() for window in parts]
        for place in np.flatnonzero(encoded.rows == 0):
            other[place][:] = 0
            other[place][1] = 9
        teacher, student = (
            Measured.of(stretches, Answers.of(each, 2), encoded, data.test.inputs) for each in (parts, other)
        )
        assert evaluation.arm(stretches, {"fp32": teacher}, data.test, [])["f1"] == 1.0
        arm = evaluation.arm(stretches, {"fp32": student}, data.test, [], teacher=teacher)
        assert arm["f1"] == arm["score"]
        assert arm["exact_match"] == arm["agreement"] == 7 / 8
        for name in ("accuracy_interval", "calibration_error", "divergence"):
            assert arm[name] is None
        (row,) = evaluation.disagreements(stretches, data.test, [], teacher=teacher, student=student)
        assert row["input"]["question"] == "the film"
        assert row["teacher"] != row["student"]
        json.dumps([arm, row], allow_nan=False)


class TestCompare:
    def test_what_rounding_costs_is_not_held_against_distillation(self) -> None:
        as_trained, rounded, control = (correct(1000, right) for right in (900, 800, 850))
        compared = evaluation.compare(
            TEXTS,
            split(truth(1000)),
            teacher=as_trained,
            distilled=rounded,
            distilled_as_control=as_trained,
            control=control,
            others={"direct": control},
            confidence=0.95,
        )
        assert compared["drop"]["value"] == pytest.approx(0.1)
        assert compared["gain_over_control"]["value"] == pytest.approx(0.05)
        assert compared["others"]["direct"] == compared["gain_over_control"]

    def test_whether_the_control_answers_every_row_alike(self) -> None:
        def same(distilled: int, control: int | None) -> Any:
            return a_report(teacher=1800, distilled=distilled, control=control)["comparisons"]["same_as_control"]

        assert (same(1760, 1760), same(1760, 1759), same(1760, None)) == (True, False, None)

    def test_numbers_are_alike_where_they_are_equal(self) -> None:
        numbers = np.arange(30, dtype=np.float32)
        for control, alike in ((numbers.copy(), True), (numbers + 1e-3, False)):
            compared = evaluation.compare(NUMBERS, split(numbers), teacher=numbers, distilled=numbers, control=control)
            assert compared["same_as_control"] is alike

    def test_numbers_are_neither_right_nor_wrong(self) -> None:
        numbers = np.arange(30, dtype=np.float32)
        test = split(numbers)
        close, far = (measured(NUMBERS, (numbers + noise)[:, None]) for noise in (0, 20 * np.sin(numbers)))
        compared = evaluation.compare(
            NUMBERS, test, teacher=close.predictions, distilled=far.predictions, control=None, confidence=0.9
        )
        expected = 1 - np.corrcoef(numbers, numbers + 20 * np.sin(numbers))[0, 1]
        assert compared["drop"]["value"] == pytest.approx(expected, abs=1e-5)
        assert compared["drop"]["confidence"] == 0.9
        assert compared["mcnemar_p"] == {"distilled_against_teacher": None, "distilled_against_control": None}


class TestVerdict:
    def test_distillation_that_helped(self) -> None:
        verdict = a_report(teacher=1800, distilled=1760, control=1700)["verdict"]
        assert verdict.startswith(
            "The distilled student is right on 88.0 % of the test rows, −2.0 points against its teacher's 90.0 %"
        )
        assert "with 10 % of its parameters and 1.0 times its speed" in verdict
        assert "distillation helped over training on the labels alone (+3.0 points, interval +" in verdict
        assert verdict.count(".") == verdict.rstrip(".").count(".") + 1

    def test_distillation_that_is_not_shown_to_help(self) -> None:
        verdict = a_report(teacher=1800, distilled=1760, control=1759)["verdict"]
        assert "distillation is not shown to help" in verdict

    def test_distillation_that_hurt(self) -> None:
        assert "distillation hurt" in a_report(teacher=1800, distilled=1700, control=1760)["verdict"]

    def test_distillation_that_changed_nothing(self) -> None:
        verdict = a_report(teacher=1800, distilled=1760, control=1760)["verdict"]
        assert verdict.endswith(
            "between distillation and training on the labels alone there is no difference: they answer every test row "
            "alike."
        )
        # As many rows right, but not the same ones, is another thing.
        shifted = np.roll(correct(2000, 1760), 3)
        compared = evaluation.compare(
            TEXTS, split(truth(2000)), teacher=truth(2000), distilled=correct(2000, 1760), control=shifted
        )
        assert not compared["same_as_control"]

    def test_no_control(self) -> None:
        verdict = a_report(teacher=1800, distilled=1760, control=None)["verdict"]
        assert "whether distillation helped is not known: there are no labels" in verdict

    def test_nothing_measurable_was_lost(self) -> None:
        verdict = a_report(teacher=1800, distilled=1800, control=1700)["verdict"]
        assert "not measurably different, 0.0 points" in verdict
        assert "not measurably" not in a_report(teacher=1700, distilled=1760, control=1700)["verdict"]

    def test_a_teacher_that_was_recorded_has_no_size_and_speed(self) -> None:
        verdict = a_report(teacher=1800, distilled=1760, control=None, recorded=True)["verdict"]
        assert "parameters" not in verdict
        assert "speed" not in verdict
        assert "); whether distillation helped" in verdict

    @pytest.mark.parametrize(("kind", "metric"), [(NUMBERS, "Pearson correlation"), (MANY, "micro-F1")])
    def test_another_metric(self, kind: TaskKind, metric: str) -> None:
        self.assert_names(kind, metric)

    def test_entities(self, words: TaskKind) -> None:
        self.assert_names(words, "entity F1")

    def assert_names(self, kind: TaskKind, metric: str) -> None:
        arms = {
            name: {"score": score, "parameters": None, "served": "fp32", "precisions": {"fp32": {"p50_ms": None}}}
            for name, score in (("teacher", 0.89), ("distilled", 0.8704))
        }
        drop = {"value": 0.0196, "low": 0.01, "high": 0.03, "confidence": 0.95}
        verdict = evaluation.verdict(kind, arms, {"drop": drop, "gain_over_control": None}, "disabled")
        assert verdict == (
            f"The distilled student reaches 0.870 {metric} on the test rows, −0.020 against its teacher's 0.890 "
            "(95 % interval −0.030 to −0.010); whether distillation helped is not known: the job asked for no control."
        )


class TestDisagreements:
    def test_the_surest_first(self) -> None:
        teacher = measured(TEXTS, [[9, 0, 0], [9, 0, 0], [2, 0, 0]])
        student = measured(TEXTS, [[8, 0, 0], [0, 9, 0], [0, 0, 1]])
        rows = evaluation.disagreements(
            TEXTS, split(np.array([0, 1, 2]), ["a", "b", "c"]), LABELS, teacher=teacher, student=student
        )
        assert [row["text"] for row in rows] == [row["input"] for row in rows] == ["b", "c"]
        assert rows[0]["label"] == rows[0]["student"]["label"] == "neutral"
        assert rows[0]["truth"] == {"label": "neutral"}
        assert rows[0]["teacher"] == {"label": "negative", "score": pytest.approx(0.9998)}
        json.dumps(rows)

    def test_pairs(self) -> None:
        test = split(np.array([0]), [Pair("a", "b")])
        (row,) = evaluation.disagreements(TEXTS, test, LABELS, teacher=labelled([0]), student=labelled([1]))
        assert row["input"] == {"text": "a", "text_pair": "b"}
        assert "text" not in row

    def test_at_most_so_many(self) -> None:
        teacher, student = labelled([0, 1, 2]), labelled([1, 2, 0])
        test = split(np.array([0, 1, 2]))
        assert len(evaluation.disagreements(TEXTS, test, LABELS, teacher=teacher, student=student, most=2)) == 2

    def test_the_numbers_that_are_farthest_apart(self) -> None:
        teacher, student = measured(NUMBERS, [[1], [2], [3]]), measured(NUMBERS, [[1.5], [2], [9]])
        test = split(np.array([1, 2, 3], np.float32), ["a", "b", "c"])
        rows = evaluation.disagreements(NUMBERS, test, ["target"], teacher=teacher, student=student)
        assert [row["input"] for row in rows] == ["c", "a"]
        json.dumps(rows)
