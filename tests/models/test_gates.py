"""What a gate decides of given bounds, and the words for it."""

from dataclasses import replace
from typing import Any

import pytest

from models.errors import Invalid
from models.gates import Bounds, Threshold, decide, decide_by_report, threshold_for, unreachable, unseen_rate
from models.specs import GateSpec


def bounds(*, drop: float = 0.02, agreement: float = 0.97, confidence: float = 0.95, rows: int = 5000) -> Bounds:
    return Bounds(confidence=confidence, rows=rows, drop_upper=drop, agreement_lower=agreement)


class TestDecide:
    @pytest.mark.parametrize(("drop", "passed"), [(0.0299, True), (0.03, True), (0.0301, False), (-0.01, True)])
    def test_max_drop_compares_the_upper_end(self, drop: float, passed: bool) -> None:
        decision = decide(GateSpec(max_drop=0.03), bounds(drop=drop))
        assert decision.passed is passed
        (check,) = decision.checks
        assert (check.gate, check.bound, check.limit, check.passed) == ("max_drop", drop, 0.03, passed)

    @pytest.mark.parametrize(("agreement", "passed"), [(0.9499, False), (0.95, True), (0.951, True)])
    def test_min_agreement_compares_the_lower_end(self, agreement: float, passed: bool) -> None:
        assert decide(GateSpec(min_agreement=0.95), bounds(agreement=agreement)).passed is passed

    def test_every_check_must_pass(self) -> None:
        gate = GateSpec(max_drop=0.03, min_agreement=0.98)
        decision = decide(gate, bounds(drop=0.02, agreement=0.97))
        assert not decision.passed
        assert [check.passed for check in decision.checks] == [True, False]
        assert "at least 97 %" in decision.reason
        assert "asks for 98 %" in decision.reason

    def test_a_gate_without_limits_asks_for_nothing(self) -> None:
        decision = decide(GateSpec(), bounds())
        assert decision.passed
        assert decision.as_json() == {"passed": True, "checks": []}

    def test_a_bound_of_a_higher_confidence_serves(self) -> None:
        assert decide(GateSpec(max_drop=0.03, confidence=0.9), bounds(confidence=0.95)).passed

    def test_a_bound_of_a_lower_confidence_proves_too_little(self) -> None:
        decision = decide(GateSpec(max_drop=0.03, min_agreement=0.5, confidence=0.99), bounds(drop=0.0))
        assert not decision.passed
        assert all("95 % confidence, and the gate asks for 99 %" in check.reason for check in decision.checks)

    def test_the_reason_has_the_numbers_in_it(self) -> None:
        decision = decide(GateSpec(max_drop=0.04), bounds(drop=0.0312, rows=5000))
        assert decision.reason == (
            "At 95 % confidence the student's accuracy is at most 3.12 points below its teacher's, on 5,000 test rows; "
            "the gate allows 4 points."
        )

    @pytest.mark.parametrize(
        ("metric", "words"), [("pearson", "Pearson correlation"), ("micro_f1", "micro-F1"), ("f1", "F1")]
    )
    def test_the_reason_names_the_tasks_metric(self, metric: str, words: str) -> None:
        decision = decide(GateSpec(max_drop=0.04), replace(bounds(drop=0.0312), metric=metric))
        assert decision.reason == (
            f"At 95 % confidence the student's {words} is at most 0.0312 below its teacher's, on 5,000 test rows; "
            "the gate allows 0.04."
        )

    def test_numbers_do_not_agree(self) -> None:
        decision = decide(GateSpec(min_agreement=0.9), replace(bounds(), agreement_lower=None))
        assert not decision.passed
        assert decision.checks[0].bound is None
        assert "ask for a max_drop" in decision.reason

    def test_a_student_that_is_better_for_certain(self) -> None:
        decision = decide(GateSpec(max_drop=0.0), bounds(drop=-0.01))
        assert decision.passed
        assert "at least 1 points above" in decision.reason


class TestMetricAndCosts:
    """Gates of which the case is planted on either side of the limit."""

    served = replace(bounds(), metric_lower=0.9, precision="int8", p95_ms=3.25, bytes=1_000_000)

    @pytest.mark.parametrize(
        ("gate", "limit", "beyond", "bound"),
        [
            ("min_metric", 0.9, 0.9001, 0.9),
            ("max_latency_ms", 3.25, 3.2499, 3.25),
            ("max_bytes", 1_000_000, 999_999, 1_000_000),
        ],
    )
    def test_the_limit_itself_passes(self, gate: str, limit: float, beyond: float, bound: float) -> None:
        for wanted, passed in ((limit, True), (beyond, False)):
            decision = decide(GateSpec.model_validate({gate: wanted}), self.served)
            (check,) = decision.checks
            assert (check.gate, check.bound, check.limit, check.passed) == (gate, bound, wanted, passed)
            assert decision.passed is passed

    @pytest.mark.parametrize(
        ("gate", "reason"),
        [
            (
                {"min_metric": 0.95},
                (
                    "At 95 % confidence the student's accuracy is at least 90 %, by 5,000 test rows; "
                    "the gate asks for 95 %."
                ),
            ),
            (
                {"max_latency_ms": 2},
                (
                    "At p95 one input takes the student, served as int8, 3.25 ms on the worker's host; "
                    "the gate allows 2 ms."
                ),
            ),
            ({"max_bytes": 5000}, "The student, served as int8, has 1,000,000 bytes; the gate allows 5,000."),
        ],
    )
    def test_the_reason_has_the_numbers_in_it(self, gate: dict[str, Any], reason: str) -> None:
        assert decide(GateSpec(**gate), self.served).reason == reason

    def test_the_metric_is_the_tasks(self) -> None:
        decision = decide(GateSpec(min_metric=-0.2), replace(self.served, metric="pearson", metric_lower=-0.1))
        assert decision.reason.startswith("At 95 % confidence the student's Pearson correlation is at least -0.1, by")
        assert decision.passed

    @pytest.mark.parametrize(
        ("gate", "what"), [("min_metric", "accuracy"), ("max_latency_ms", "latency"), ("max_bytes", "size")]
    )
    def test_a_report_without_the_figure_does_not_pass(self, gate: str, what: str) -> None:
        decision = decide(GateSpec.model_validate({gate: 1}), bounds())
        assert not decision.passed
        assert decision.checks[0].bound is None
        assert what in decision.reason
        assert "run its job again" in decision.reason

    def test_only_a_bound_has_a_confidence(self) -> None:
        gate = GateSpec(min_metric=0.5, max_latency_ms=10, max_bytes=10**7, confidence=0.99)
        assert [check.passed for check in decide(gate, self.served).checks] == [False, True, True]

    def test_every_check_stands_in_the_decision(self) -> None:
        gate = GateSpec(max_drop=0.1, min_agreement=0.5, min_metric=0.5, max_latency_ms=10, max_bytes=10**7)
        decision = decide(gate, self.served)
        assert decision.passed
        names = ["max_drop", "min_agreement", "min_metric", "max_latency_ms", "max_bytes"]
        assert [check["gate"] for check in decision.as_json()["checks"]] == names


class TestDecideByReport:
    def test_one_without_bounds_passes_nothing(self) -> None:
        decision = decide_by_report(GateSpec(max_drop=0.1, max_bytes=5), {"format": 1})
        assert [(check.gate, check.limit, check.passed) for check in decision.checks] == [
            ("max_drop", 0.1, False),
            ("max_bytes", 5, False),
        ]
        assert not decision.passed
        assert "report has no bounds." in decision.reason
        assert decide_by_report(GateSpec(), {}).passed


class TestThresholdFor:
    rows = tuple(
        {"threshold": threshold, "coverage": coverage, "accuracy_lower_bound": bound, "agreement_lower_bound": None}
        for threshold, coverage, bound in ((0.4, 1.0, 0.80), (0.6, 0.9, 0.85), (0.8, 0.7, 0.90), (0.95, 0.3, 0.84))
    )

    @pytest.mark.parametrize(("target", "threshold"), [(0.7, 0.4), (0.85, 0.6), (0.8501, 0.8), (0.9, 0.8)])
    def test_the_lowest_that_is_shown_to_reach_it(self, target: float, threshold: float) -> None:
        for rows in (self.rows, self.rows[::-1]):
            assert threshold_for({"cascade": {"thresholds": list(rows)}}, "accuracy", target).value == threshold
        assert threshold_for({"cascade": {"thresholds": list(self.rows)}}, "accuracy", 0.9) == Threshold(0.8, 0.7)

    def test_the_best_is_named_where_none_does(self) -> None:
        with pytest.raises(Invalid, match=r"accuracy of 95 %: the best is 90 %, at the threshold 0\.8") as caught:
            threshold_for({"cascade": {"thresholds": list(self.rows)}}, "accuracy", 0.95)
        assert caught.value.code == "target_unreachable"

    @pytest.mark.parametrize("cascade", [None, {"thresholds": []}, {"thresholds": list(rows)}])
    def test_no_bound_of_it(self, cascade: Any) -> None:
        with pytest.raises(Invalid, match="no table of thresholds with a bound of the agreement"):
            threshold_for({"cascade": cascade}, "agreement", 0.5)


class TestUnreachable:
    @pytest.mark.parametrize(("rows", "bound"), [(20, 0.861), (59, 0.950), (299, 0.990)])
    def test_known_bounds(self, rows: int, bound: float) -> None:
        assert 1 - unseen_rate(rows, 0.95) == pytest.approx(bound, abs=5e-4)

    def test_few_rows_cannot_pass_a_strict_gate(self) -> None:
        (reason,) = unreachable(GateSpec(min_agreement=0.95), 20)
        assert "20 test rows" in reason
        assert "86.09 %" in reason
        assert unreachable(GateSpec(min_agreement=0.95), 59) == []

    def test_few_rows_cannot_show_that_little_was_lost(self) -> None:
        assert unreachable(GateSpec(max_drop=0.04), 73)
        assert unreachable(GateSpec(max_drop=0.04), 74) == []

    def test_few_rows_cannot_show_a_high_metric(self) -> None:
        (reason,) = unreachable(GateSpec(min_metric=0.95), 58)
        assert "58 test rows" in reason
        assert reason.endswith("the task's main metric, and the gate asks for 0.95.")
        assert unreachable(GateSpec(min_metric=0.95), 59) == []
        assert len(unreachable(GateSpec(max_drop=0.01, min_agreement=0.99, min_metric=0.99), 20)) == 3

    def test_costs_do_not_depend_on_the_rows(self) -> None:
        assert unreachable(GateSpec(max_latency_ms=0.001, max_bytes=1), 1) == []

    def test_a_gate_without_limits_is_always_within_reach(self) -> None:
        assert unreachable(GateSpec(), 1) == []

    def test_no_rows_prove_nothing(self) -> None:
        assert unseen_rate(0, 0.95) == 1.0


class TestBoundsOfAReport:
    def test_they_are_read(self) -> None:
        report = {
            "rows": {"test": 300},
            "comparisons": {"drop": {"upper_one_sided": 0.03, "confidence": 0.9}},
            "arms": {"distilled": {"agreement_lower_bound": 0.96}},
        }
        assert Bounds.of_report(report) == Bounds(0.9, 300, 0.03, 0.96, "accuracy")
        assert Bounds.of_report({**report, "metric": "f1"}).metric == "f1"

    def test_what_is_served_counts(self) -> None:
        precisions = {"fp32": {"p95_ms": 9.0, "bytes": 400}, "int8": {"p95_ms": 3.0, "bytes": 100}}
        distilled = {"agreement_lower_bound": 0.96, "score_lower_bound": 0.88, "precisions": precisions}
        report: dict[str, Any] = {
            "rows": {"test": 300},
            "comparisons": {"drop": {"upper_one_sided": 0.03, "confidence": 0.9}},
            "arms": {"distilled": distilled | {"served": "int8"}},
        }
        found = Bounds.of_report(report)
        assert (found.metric_lower, found.precision, found.p95_ms, found.bytes) == (0.88, "int8", 3.0, 100)
        report["arms"]["distilled"] = distilled | {"served": "fp32", "precisions": {"fp32": {"p95_ms": None}}}
        found = Bounds.of_report(report)
        assert (found.precision, found.p95_ms, found.bytes) == ("fp32", None, None)

    @pytest.mark.parametrize(
        "report",
        [{}, {"rows": {"test": 3}, "comparisons": None, "arms": {}}, {"rows": {}, "comparisons": [], "arms": 3}],
    )
    def test_another_document_is_refused(self, report: dict[str, object]) -> None:
        with pytest.raises(Invalid) as caught:
            Bounds.of_report(report)
        assert caught.value.code == "report_unreadable"
