"""What a student saves: the identities of the formula, and its words."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.economics import SECONDS_PER_MONTH, Terms, compare, cost_of_training, price_of_tokens, sentence

amounts = st.floats(1e-3, 1e6)
TERMS = st.builds(
    Terms,
    price_per_call=st.floats(1e-6, 10),
    calls_per_month=st.floats(1, 1e9),
    host_cost_per_month=amounts,
    training_cost=amounts,
    fallback_coverage=st.floats(0.05, 1),
    texts_per_second=st.none() | st.floats(1e-2, 1e5),
)
EXAMPLE = Terms(
    price_per_call=0.002,
    calls_per_month=2_000_000,
    host_cost_per_month=60.0,
    training_cost=0.05,
    fallback_coverage=0.9,
    texts_per_second=500.0,
)


def dearness(terms: Terms, calls: float) -> float:
    """What the student costs more than its teacher, as a share of what the teacher costs."""
    found = compare(replace(terms, calls_per_month=calls))
    return -found.saving_per_month / found.teacher_cost_per_month


def test_the_example_of_the_documentation() -> None:
    found = compare(EXAMPLE)
    assert found.teacher_cost_per_month == pytest.approx(4000)
    assert found.student_cost_per_month == pytest.approx(60 + 400)
    assert found.saving_per_month == pytest.approx(3540)
    assert found.capacity_calls_per_month == pytest.approx(1_314_900_000)
    assert found.hosts == 1
    assert found.utilisation == pytest.approx(0.001521, rel=1e-3)
    assert found.break_even_calls_per_month == pytest.approx(33_333.33)
    assert found.break_even_months == pytest.approx(0.05 / 3540)


@given(TERMS)
def test_at_the_break_even_volume_both_cost_the_same(terms: Terms) -> None:
    calls = compare(terms).break_even_calls_per_month
    assume(calls is not None and _steps_are_wide(terms))
    assert calls is not None
    assert dearness(terms, calls) == pytest.approx(0, abs=1e-6)


@given(TERMS, st.floats(1, 1e4))
def test_above_it_the_student_is_never_dearer(terms: Terms, factor: float) -> None:
    calls = compare(terms).break_even_calls_per_month
    assume(calls is not None and _steps_are_wide(terms))
    assert calls is not None
    assert dearness(terms, calls * factor) <= 1e-6


@given(TERMS)
def test_right_below_it_the_student_is_dearer(terms: Terms) -> None:
    calls = compare(terms).break_even_calls_per_month
    assume(calls is not None and _steps_are_wide(terms))
    assert calls is not None
    assert dearness(terms, calls * (1 - 1e-6)) > 0


@given(TERMS, st.floats(1, 1e12), st.floats(1e-3, 0.999))
def test_a_host_that_costs_more_than_its_calls_never_saves(terms: Terms, calls: float, share: float) -> None:
    calls_per_host = terms.host_cost_per_month / (terms.fallback_coverage * terms.price_per_call)
    weak = replace(terms, texts_per_second=share * calls_per_host / SECONDS_PER_MONTH)
    assert compare(weak).break_even_calls_per_month is None
    assert dearness(weak, calls) >= -1e-9


@given(TERMS)
def test_the_hosts_are_enough_and_not_one_too_many(terms: Terms) -> None:
    found = compare(terms)
    if found.capacity_calls_per_month is None:
        assert (found.hosts, found.utilisation) == (1, None)
        return
    assert found.hosts * found.capacity_calls_per_month >= terms.calls_per_month * (1 - 1e-12)
    assert (found.hosts - 1) * found.capacity_calls_per_month < terms.calls_per_month
    assert found.utilisation is not None
    assert 0 < found.utilisation <= 1 + 1e-12


@given(TERMS)
def test_after_the_break_even_time_the_savings_are_the_training(terms: Terms) -> None:
    found = compare(terms)
    assert found.saving_per_month == found.teacher_cost_per_month - found.student_cost_per_month
    if found.saving_per_month <= 0:
        assert found.break_even_months is None
        return
    assert found.break_even_months is not None
    assert found.break_even_months * found.saving_per_month == pytest.approx(terms.training_cost)


@given(TERMS)
def test_what_falls_back_costs_what_the_teacher_costs(terms: Terms) -> None:
    alone, found = compare(replace(terms, fallback_coverage=1.0)), compare(terms)
    more = found.student_cost_per_month - alone.student_cost_per_month
    assert more == pytest.approx((1 - terms.fallback_coverage) * found.teacher_cost_per_month, rel=1e-6, abs=1e-6)


@given(st.floats(1e-6, 1e3), st.floats(1, 1e5))
def test_a_price_of_tokens_is_a_price_of_a_call(price: float, tokens: float) -> None:
    assert price_of_tokens(price, tokens) * 1000 == pytest.approx(price * tokens)


def test_a_month_of_training_costs_what_a_month_of_the_host_does() -> None:
    assert cost_of_training(SECONDS_PER_MONTH, 60.0) == 60.0
    assert cost_of_training(0.0, 60.0) == 0.0


def test_whole_hosts_make_steps() -> None:
    """A host answers 100 calls and is paid for by 79: one pays from 79, two from 158, … and from four on all do."""
    terms = Terms(1.0, 1.0, 79.0, texts_per_second=100 / SECONDS_PER_MONTH)
    dear, cheap = (78, 101, 157, 201, 236, 301, 315), (80, 99, 159, 199, 238, 299, 317, 401, 501)
    assert all(dearness(terms, calls) > 0 for calls in dear)
    assert all(dearness(terms, calls) < 0 for calls in cheap)
    assert compare(terms).break_even_calls_per_month == pytest.approx(4 * 79)


class TestSentence:
    def test_a_student_that_pays(self) -> None:
        assert sentence(EXAMPLE, compare(EXAMPLE)) == (
            "At 2,000,000 calls a month the student costs 460.00 and its teacher 4,000.00: it saves 3,540.00 a month "
            "(88.5 %), and it pays from 33,334 calls a month on; its training (0.05) is paid for after less than "
            "an hour."
        )

    def test_a_volume_that_is_too_small(self) -> None:
        terms = replace(EXAMPLE, calls_per_month=1000)
        assert sentence(terms, compare(terms)) == (
            "At 1,000 calls a month the student costs 60.20, 58.20 more than its teacher (2.00); it pays from 33,334 "
            "calls a month on."
        )

    def test_a_host_that_never_pays(self) -> None:
        terms = replace(EXAMPLE, texts_per_second=0.001)
        assert "it pays at no volume" in sentence(terms, compare(terms))

    @pytest.mark.parametrize(("training", "words"), [(100.0, "20.6 hours"), (1000.0, "8.6 days"), (1e5, "28.2 months")])
    def test_a_time(self, training: float, words: str) -> None:
        terms = replace(EXAMPLE, training_cost=training)
        assert sentence(terms, compare(terms)).endswith(f"is paid for after {words}.")


def _steps_are_wide(terms: Terms) -> bool:
    """Calls that pay for a host are not within rounding of those that it can answer."""
    capacity = compare(terms).capacity_calls_per_month or math.inf
    return terms.host_cost_per_month / (terms.fallback_coverage * terms.price_per_call) < 0.99 * capacity
