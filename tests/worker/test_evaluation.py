"""Statistics against known values and their definitions; the choice of a precision; the report and its verdict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from transformers import BertTokenizer

from models.runtime import Runtime
from models.specs import GateSpec
from tests.factories import LABELS, tiny_network, tiny_rows, tiny_tokenizer
from worker import evaluation, export
from worker.evaluation import Choice, Latency, Measured, agreement_bound, choose_precision, paired_drop

TEXTS = tiny_rows(50)[0]


def outcomes(*, both: int, first: int = 0, second: int = 0, neither: int = 0) -> tuple[Any, Any]:
    """Two arrays of right and wrong answers with the given counts of the four kinds of row."""
    one = np.array([True] * both + [True] * first + [False] * second + [False] * neither)
    two = np.array([True] * both + [False] * first + [True] * second + [False] * neither)
    return one, two


class TestAgreementBound:
    @pytest.mark.parametrize(("rows", "bound"), [(20, 0.861), (59, 0.950), (299, 0.990)])
    def test_all_agree(self, rows: int, bound: float) -> None:
        assert agreement_bound(rows, rows) == pytest.approx(bound, abs=5e-4)
        assert agreement_bound(rows, rows) == pytest.approx(0.05 ** (1 / rows))

    def test_none_agree(self) -> None:
        assert agreement_bound(0, 50) == 0.0

    @given(st.integers(1, 500), st.data())
    @settings(deadline=None, max_examples=50)
    def test_it_lies_below_what_was_seen_and_falls_with_confidence(self, rows: int, data: st.DataObject) -> None:
        agreeing = data.draw(st.integers(0, rows))
        loose, strict = (agreement_bound(agreeing, rows, confidence=confidence) for confidence in (0.9, 0.99))
        assert 0 <= strict <= loose <= agreeing / rows


class TestPairedDrop:
    def test_the_value_is_the_difference_of_the_accuracies(self) -> None:
        interval = paired_drop(*outcomes(both=800, first=60, second=20, neither=120))
        assert interval.value == pytest.approx(0.04)
        assert interval.low < 0.04 < interval.upper_one_sided < interval.high
        # The standard error of a paired difference, by hand.
        error = np.sqrt((80 - 40**2 / 1000) / 1000**2)
        assert interval.high == pytest.approx(0.04 + 1.96 * error, abs=0.002)
        assert interval.low == pytest.approx(0.04 - 1.96 * error, abs=0.002)
        assert interval.upper_one_sided == pytest.approx(0.04 + 1.645 * error, abs=0.002)

    def test_it_is_the_percentile_bootstrap(self) -> None:
        teacher, student = outcomes(both=300, first=40, second=15, neither=45)
        ours = paired_drop(teacher, student, resamples=20_000)
        theirs = bootstrap(
            (teacher.astype(float) - student.astype(float),),
            np.mean,
            method="percentile",
            n_resamples=20_000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)

    def test_pairing_is_what_makes_it_narrow(self) -> None:
        paired = paired_drop(*outcomes(both=800, first=10, second=0, neither=190))
        scattered = paired_drop(*outcomes(both=620, first=190, second=180, neither=10))
        assert paired.value == scattered.value == pytest.approx(0.01)
        assert paired.high - paired.low < 0.3 * (scattered.high - scattered.low)

    def test_the_same_seed_gives_the_same_interval(self) -> None:
        data = outcomes(both=80, first=6, second=2, neither=12)
        assert paired_drop(*data, seed=3) == paired_drop(*data, seed=3)

    def test_swapping_the_two_turns_it_over(self) -> None:
        teacher, student = outcomes(both=800, first=60, second=20, neither=120)
        there, back = paired_drop(teacher, student), paired_drop(student, teacher)
        assert back.value == -there.value
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.003)

    @pytest.mark.parametrize(("rows", "unseen"), [(20, 1 - 0.861), (59, 0.05), (299, 0.01)])
    def test_few_rows_that_all_agree_prove_little(self, rows: int, unseen: float) -> None:
        interval = paired_drop(*outcomes(both=rows))
        assert interval.value == 0
        assert interval.upper_one_sided == pytest.approx(unseen, abs=5e-4)
        assert interval.low < 0 < interval.high

    def test_the_floor_does_not_show_on_many_rows(self) -> None:
        assert paired_drop(*outcomes(both=5000)).upper_one_sided < 0.001

    @given(st.tuples(*[st.integers(0, 200)] * 4).filter(lambda counts: sum(counts) > 0), st.floats(0.8, 0.99))
    @settings(deadline=None, max_examples=50)
    def test_its_ends_are_in_order(self, counts: tuple[int, int, int, int], confidence: float) -> None:
        both, first, second, neither = counts
        interval = paired_drop(
            *outcomes(both=both, first=first, second=second, neither=neither), confidence=confidence, resamples=500
        )
        assert -1 <= interval.low <= interval.value <= interval.upper_one_sided <= interval.high <= 1

    @pytest.mark.long
    def test_the_one_sided_end_covers(self) -> None:
        """Over many draws of test rows the end is above the true drop about as often as it says."""
        rng = np.random.default_rng(0)
        shares = np.array([0.75, 0.08, 0.05, 0.12])
        covered = 0
        for draw in range(1000):
            both, first, second, neither = rng.multinomial(400, shares)
            interval = paired_drop(*outcomes(both=both, first=first, second=second, neither=neither), seed=draw)
            covered += interval.upper_one_sided >= 0.03
        assert 0.93 <= covered / 1000 <= 0.98


class TestMcnemar:
    def test_known_value(self) -> None:
        # 2 · P(X ≤ 1 | 6 fair coins) = 2 · 7/64
        assert evaluation.mcnemar(*outcomes(both=10, first=5, second=1)) == pytest.approx(14 / 64)

    def test_no_difference(self) -> None:
        assert evaluation.mcnemar(*outcomes(both=10)) == 1.0
        assert evaluation.mcnemar(*outcomes(both=10, first=3, second=3)) == 1.0


class TestPerClass:
    def test_by_hand(self) -> None:
        rows = evaluation.per_class(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["no", "yes", "never"])
        assert rows[0] == {"label": "no", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
        assert rows[1]["recall"] == pytest.approx(2 / 3)
        assert rows[2] == {"label": "never", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
        json.dumps(rows)


class TestCalibration:
    def test_sure_and_right(self) -> None:
        logits = np.array([[50, 0], [0, 50]], np.float32)
        assert evaluation.calibration_error(logits, np.array([0, 1])) == pytest.approx(0, abs=1e-6)
        assert evaluation.calibration_error(logits, np.array([1, 0])) == pytest.approx(1, abs=1e-6)

    def test_as_sure_as_right(self) -> None:
        logits = np.log(np.array([[0.75, 0.25]] * 4, np.float32))
        assert evaluation.calibration_error(logits, np.array([0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)


class TestDivergence:
    def test_of_the_same_is_nothing(self) -> None:
        logits = np.array([[1, 2, 3], [400, 0, -400]], np.float32)
        assert evaluation.divergence(logits, logits) == 0

    def test_by_hand(self) -> None:
        teacher, student = (np.log(np.array([shares], np.float32)) for shares in ([0.5, 0.5], [0.75, 0.25]))
        expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
        assert evaluation.divergence(teacher, student) == pytest.approx(expected, rel=1e-5)

    def test_it_stays_finite(self) -> None:
        assert np.isfinite(evaluation.divergence(*(np.array([row], np.float32) for row in ([0, 2000], [2000, 0]))))


def measured(predictions: list[int], p50: float | None = 1.0) -> Measured:
    """Answers with the given predictions of three labels, at the given speed."""
    logits = 3 * np.eye(3, dtype=np.float32)[predictions]
    return Measured(logits, bytes=100, latency=None if p50 is None else Latency(p50, 2 * p50, 3 * p50, 1000 / p50))


class TestChoosePrecision:
    SAME = [0, 1, 2] * 100

    def test_int8_is_served_where_it_agrees_and_is_faster(self) -> None:
        choice = choose_precision("auto", {"fp32": measured(self.SAME, 2.0), "int8": measured(self.SAME, 1.0)})
        assert choice.served == "int8"
        assert "100.0 %" in choice.reason
        assert "1.00 ms against 2.00 ms" in choice.reason

    @pytest.mark.parametrize(("wrong", "served"), [(4, "int8"), (5, "fp32")])
    def test_agreement_is_asked_for_exactly(self, wrong: int, served: str) -> None:
        other = [(label + 1) % 3 for label in self.SAME[:wrong]] + self.SAME[wrong:]
        choice = choose_precision("auto", {"fp32": measured(self.SAME, 2.0), "int8": measured(other, 1.0)})
        assert choice.served == served
        assert f"{100 * (1 - wrong / 300):.1f} %" in choice.reason

    def test_a_slower_int8_is_not_served(self) -> None:
        choice = choose_precision("auto", {"fp32": measured(self.SAME, 1.0), "int8": measured(self.SAME, 1.0)})
        assert choice.served == "fp32"
        assert "not faster" in choice.reason

    @pytest.mark.parametrize("asked", ["fp32", "int8"])
    def test_the_spec_has_the_last_word(self, asked: Any) -> None:
        both = {"fp32": measured(self.SAME, 1.0), "int8": measured([0] * 300, 9.0)}
        assert choose_precision(asked, both) == Choice(asked, f"The job asks for {asked}.")  # type: ignore[arg-type]

    def test_without_int8(self) -> None:
        assert choose_precision("auto", {"fp32": measured(self.SAME)}).served == "fp32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("student")
    network = tiny_network()
    tokenizer = BertTokenizer(tokenizer_object=tiny_tokenizer())
    export.write_student(made, network, tokenizer, task="text-classification", labels=LABELS, max_length=24)
    export.to_onnx(network, made, max_length=24)
    export.quantize(made)
    return made


class TestMeasure:
    def test_each_precision_answers_and_is_timed(self, folder: Path) -> None:
        found = evaluation.measure(folder, TEXTS)
        assert set(found) == {"fp32", "int8"}
        for precision, one in found.items():
            runtime = Runtime.open(folder, precision=precision)
            np.testing.assert_array_equal(one.logits, runtime.logits(runtime.tokenize(TEXTS)))
            assert one.bytes == runtime.bytes
            assert one.latency is not None
            assert 0 < one.latency.p50_ms <= one.latency.p95_ms <= one.latency.p99_ms
            assert one.latency.texts_per_second > 0

    def test_it_tells_of_its_progress_and_can_be_stopped(self, folder: Path) -> None:
        told: list[int] = []
        evaluation.measure(folder, TEXTS, precisions=["fp32"], on_rows=told.append)
        assert sum(told) == len(TEXTS)

        def stop(_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluation.measure(folder, TEXTS, precisions=["fp32"], on_rows=stop)

    def test_one_text_is_enough(self, folder: Path) -> None:
        assert evaluation.measure_latency(Runtime.open(folder), ["good"]).p50_ms > 0

    def test_no_texts_have_no_answers(self, folder: Path) -> None:
        assert evaluation.answer(Runtime.open(folder), []).shape == (0, 3)


def predictions(rows: int, right: int) -> list[int]:
    """Of targets that are all 0."""
    return [0] * right + [1] * (rows - right)


def a_report(
    *, rows: int = 2000, teacher: int, distilled: int, control: int | None, gate: GateSpec | None = None
) -> dict[str, Any]:
    """A report of networks that are right on so many of `rows`, each on the first ones."""
    targets = np.zeros(rows, np.int64)
    sets: dict[str, Any] = {"teacher": teacher, "distilled": distilled, "control": control, "untrained": rows // 3}
    answers = {name: None if right is None else measured(predictions(rows, right)) for name, right in sets.items()}
    first = answers["teacher"]
    assert first is not None
    arms = {
        name: one
        and evaluation.arm(
            {"fp32": one},
            targets,
            LABELS,
            served="fp32",
            parameters=(100, 50) if name == "teacher" else (10, 4),
            teacher=None if name == "teacher" else first.logits,
        )
        for name, one in answers.items()
    }
    comparisons = evaluation.compare(
        targets,
        teacher=np.array(predictions(rows, teacher)),
        distilled=np.array(predictions(rows, distilled)),
        control=None if control is None else np.array(predictions(rows, control)),
        confidence=0.95,
    )
    return evaluation.report(
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
    )


class TestReport:
    def test_it_has_every_part(self) -> None:
        report = a_report(teacher=1800, distilled=1760, control=1700, gate=GateSpec(max_drop=0.04))
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        assert set(report) == {
            "format", "verdict", "metric", "rows", "labels", "arms", "control_reason", "comparisons", "precision",
            "gate", "counters", "seconds", "warnings", "host",
        }  # fmt: skip
        assert set(report["arms"]) == {"teacher", "distilled", "control", "untrained"}
        distilled = report["arms"]["distilled"]
        assert distilled["accuracy"] == 0.88
        assert distilled["agreement"] == 0.98
        assert distilled["agreement_lower_bound"] == pytest.approx(agreement_bound(1960, 2000))
        assert distilled["accuracy_interval"][0] < 0.88 < distilled["accuracy_interval"][1]
        assert distilled["precisions"]["fp32"]["agreement_with_fp32"] == 1.0
        assert report["arms"]["teacher"]["agreement"] is None
        assert report["comparisons"]["drop"]["value"] == pytest.approx(0.02)
        assert report["comparisons"]["gain_over_control"]["value"] == pytest.approx(0.03)
        assert report["comparisons"]["mcnemar_p"]["distilled_against_control"] < 1e-6
        assert report["warnings"] == [{"code": "a_code", "message": "a sentence"}]
        assert report["host"]["cores"] >= 1

    def test_the_gate_decides_on_the_bound(self) -> None:
        bare = a_report(teacher=1800, distilled=1760, control=None)
        assert bare["gate"] == {"passed": None, "checks": []}
        # The drop is 0.02 and its one-sided upper end some 0.025.
        assert a_report(teacher=1800, distilled=1760, control=None, gate=GateSpec(max_drop=0.03))["gate"]["passed"]
        refused = a_report(teacher=1800, distilled=1760, control=None, gate=GateSpec(max_drop=0.021))
        assert not refused["gate"]["passed"]

    def test_twenty_rows_fail_a_strict_gate_however_well_it_went(self) -> None:
        perfect = {"rows": 20, "teacher": 20, "distilled": 20, "control": 20}
        for gate in (GateSpec(min_agreement=0.95), GateSpec(max_drop=0.04)):
            assert a_report(**perfect, gate=gate)["gate"]["passed"] is False
        assert a_report(**perfect, gate=GateSpec(min_agreement=0.86))["gate"]["passed"] is True

    def test_a_network_that_was_not_exported_has_no_size_and_speed(self) -> None:
        untrained = evaluation.arm(
            {"fp32": Measured(measured([0, 1, 2]).logits)},
            np.array([0, 1, 1]),
            LABELS,
            served="fp32",
            parameters=(9, 3),
        )
        assert untrained["bytes"] is None
        assert untrained["precisions"]["fp32"]["p50_ms"] is None


def test_what_rounding_costs_is_not_held_against_distillation() -> None:
    targets = np.zeros(1000, np.int64)
    as_trained = np.repeat([0, 1], [900, 100])
    rounded = np.repeat([0, 1], [800, 200])
    control = np.repeat([0, 1], [850, 150])
    compared = evaluation.compare(
        targets,
        teacher=as_trained,
        distilled=rounded,
        distilled_as_control=as_trained,
        control=control,
        confidence=0.95,
    )
    assert compared["drop"]["value"] == pytest.approx(0.1)
    assert compared["gain_over_control"]["value"] == pytest.approx(0.05)


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

    def test_no_control(self) -> None:
        verdict = a_report(teacher=1800, distilled=1760, control=None)["verdict"]
        assert "whether distillation helped is not known: there are no labels" in verdict

    def test_nothing_measurable_was_lost(self) -> None:
        verdict = a_report(teacher=1800, distilled=1800, control=1700)["verdict"]
        assert "not measurably different, 0.0 points" in verdict
        assert "not measurably" not in a_report(teacher=1700, distilled=1760, control=1700)["verdict"]


class TestDisagreements:
    def test_the_surest_first(self) -> None:
        teacher = np.array([[9, 0, 0], [9, 0, 0], [2, 0, 0]], np.float32)
        student = np.array([[8, 0, 0], [0, 9, 0], [0, 0, 1]], np.float32)
        rows = evaluation.disagreements(["a", "b", "c"], np.array([0, 1, 2]), LABELS, teacher=teacher, student=student)
        assert [row["text"] for row in rows] == ["b", "c"]
        assert rows[0]["label"] == rows[0]["student"]["label"] == "neutral"
        assert rows[0]["teacher"]["label"] == "negative"
        json.dumps(rows)

    def test_at_most_so_many(self) -> None:
        logits = np.eye(3, dtype=np.float32)
        rows = evaluation.disagreements(
            ["a", "b", "c"], np.array([0, 1, 2]), LABELS, teacher=logits, student=logits[[1, 2, 0]], most=2
        )
        assert len(rows) == 2
