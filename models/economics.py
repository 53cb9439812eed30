"""What a student saves against its teacher's API, and from when on it pays. `docs/economics.md` has the formula.

Pure arithmetic: amounts are in one currency, whichever it is; a month is the twelfth part of a year of 365.25 days. One
call carries one input.
"""

import math
from dataclasses import dataclass

SECONDS_PER_MONTH = 365.25 * 24 * 3600 / 12


@dataclass(frozen=True)
class Terms:
    """What is given. Every number is finite; `price_per_call` and `calls_per_month` are above 0."""

    price_per_call: float
    """Currency per call of the teacher's API."""
    calls_per_month: float
    host_cost_per_month: float
    """Currency per month of one host that serves the student, at least 0."""
    training_cost: float = 0.0
    """Currency, paid once, at least 0."""
    fallback_coverage: float = 1.0
    """The share of the calls that the student answers itself, above 0 and at most 1; its teacher answers the others."""
    texts_per_second: float | None = None
    """What one host answers when all its cores are busy, above 0; None: nobody has measured, and one host is taken."""


@dataclass(frozen=True)
class Economics:
    """What follows from it."""

    teacher_cost_per_month: float
    student_cost_per_month: float
    """Hosts, and the calls that fall back."""
    saving_per_month: float
    """Negative where the student is dearer."""
    hosts: int
    """Whole hosts that the volume needs, at least one."""
    capacity_calls_per_month: float | None
    """Of one host."""
    utilisation: float | None
    """The share of the hosts' capacity that the volume takes, from 0 to 1."""
    break_even_calls_per_month: float | None
    """From this volume on the student never costs more than its teacher; at it both cost the same. None: it does at
    every volume."""
    break_even_months: float | None
    """Until the savings have paid for the training; None: they never do."""


def price_of_tokens(price_per_1k_tokens: float, tokens_per_call: float) -> float:
    """Currency per call of an API that counts tokens: those of the prompt, the text and the answer together."""
    return price_per_1k_tokens * tokens_per_call / 1000


def cost_of_training(seconds: float, host_cost_per_month: float) -> float:
    """Currency for `seconds` of one host."""
    return seconds / SECONDS_PER_MONTH * host_cost_per_month


def compare(terms: Terms) -> Economics:
    """The teacher's API and the student's hosts at one volume, and the volume and the time at which they are even."""
    capacity = None if terms.texts_per_second is None else terms.texts_per_second * SECONDS_PER_MONTH
    hosts = 1 if capacity is None else max(1, math.ceil(terms.calls_per_month / capacity))
    teacher = terms.price_per_call * terms.calls_per_month
    student = hosts * terms.host_cost_per_month + (1 - terms.fallback_coverage) * teacher
    saving = teacher - student
    return Economics(
        teacher_cost_per_month=teacher,
        student_cost_per_month=student,
        saving_per_month=saving,
        hosts=hosts,
        capacity_calls_per_month=capacity,
        utilisation=None if capacity is None else terms.calls_per_month / (hosts * capacity),
        break_even_calls_per_month=_break_even(terms, capacity),
        break_even_months=terms.training_cost / saving if saving > 0 else None,
    )


def _break_even(terms: Terms, capacity: float | None) -> float | None:
    """Calls per month from which the student pays.

    One host is paid for by as many calls as cost what it costs. Hosts come whole: with n of them the student is dearer
    above (n − 1) · capacity until n hosts are paid for, which ends with the last n for which there is such a gap.
    """
    calls_per_host = terms.host_cost_per_month / (terms.fallback_coverage * terms.price_per_call)
    if capacity is None:
        return calls_per_host
    if calls_per_host >= capacity:
        return None
    return max(1, math.ceil(capacity / (capacity - calls_per_host)) - 1) * calls_per_host


def sentence(terms: Terms, found: Economics) -> str:
    """The same in words."""
    volume = f"At {terms.calls_per_month:,.0f} calls a month"
    student, teacher = _amount(found.student_cost_per_month), _amount(found.teacher_cost_per_month)
    saving = _amount(abs(found.saving_per_month))
    if found.saving_per_month > 0:
        share = 100 * found.saving_per_month / found.teacher_cost_per_month
        what = (
            f"{volume} the student costs {student} and its teacher {teacher}: it saves {saving} a month ({share:.3g} %)"
        )
    else:
        what = f"{volume} the student costs {student}, {saving} more than its teacher ({teacher})"
    if found.break_even_calls_per_month is None:
        when = "it pays at no volume, because a host costs more than the calls that it can answer"
    else:
        when = f"it pays from {math.ceil(found.break_even_calls_per_month):,} calls a month on"
    if found.break_even_months is None:
        return f"{what}; {when}."
    return f"{what}, and {when}; its training ({_amount(terms.training_cost)}) is paid for after {_time(found)}."


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value == 0 or abs(value) >= 1 else f"{value:.2g}"


def _time(found: Economics) -> str:
    months = found.break_even_months or 0.0
    hours = months * SECONDS_PER_MONTH / 3600
    if hours < 1:
        return "less than an hour"
    if hours < 48:
        return f"{hours:.1f} hours"
    return f"{months:.1f} months" if months >= 2 else f"{hours / 24:.1f} days"
