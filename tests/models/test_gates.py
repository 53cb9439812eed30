"""What a gate decides of given bounds, and the words for it."""

from dataclasses import replace

import pytest

from models.errors import Invalid
from models.gates import Bounds, decide, unreachable, unseen_rate
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

    @pytest.mark.parametrize("report", [{}, {"rows": {"test": 3}, "comparisons": None, "arms": {}}])
    def test_another_document_is_refused(self, report: dict[str, object]) -> None:
        with pytest.raises(Invalid) as caught:
            Bounds.of_report(report)
        assert caught.value.code == "report_unreadable"
