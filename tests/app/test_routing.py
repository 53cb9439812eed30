"""Which arm a call goes to, without a service."""

import math
from itertools import pairwise

import pytest

from app.serving.routing import arm, unsure
from models.specs import Canary

KEYS = [f"user {number}" for number in range(4000)]


def _canaries(fraction: float, deployment_id: str = "dep_1") -> set[str]:
    canary = Canary(student="st_2", fraction=fraction)
    return {key for key in KEYS if arm(canary, deployment_id, key, 0.0) == "canary"}


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_a_share_of_the_keys(fraction: float) -> None:
    # 3.3 standard deviations of a binomial: the keys are fixed, and so is the outcome.
    most = 3.3 * math.sqrt(len(KEYS) * fraction * (1 - fraction))
    assert abs(len(_canaries(fraction)) - len(KEYS) * fraction) < most


def test_a_larger_share_only_adds_keys() -> None:
    shares = [_canaries(fraction) for fraction in (0.01, 0.05, 0.1, 0.3, 0.8)]
    for smaller, larger in pairwise(shares):
        assert smaller < larger


def test_the_student_does_not_matter_and_the_deployment_does() -> None:
    canary = Canary(student="st_3", fraction=0.1)
    assert {key for key in KEYS if arm(canary, "dep_1", key, 0.5) == "canary"} == _canaries(0.1)
    both = len(_canaries(0.3) & _canaries(0.3, "dep_2"))
    assert abs(both - len(KEYS) * 0.09) < 3.3 * math.sqrt(len(KEYS) * 0.09 * 0.91)


@pytest.mark.parametrize("sticky", [None, ""])
def test_without_a_key_chance_decides(sticky: str | None) -> None:
    canary = Canary(student="st_2", fraction=0.25)
    assert [arm(canary, "dep_1", sticky, draw) for draw in (0.0, 0.24, 0.25, 0.99)] == [
        "canary",
        "canary",
        "stable",
        "stable",
    ]


def test_what_is_unsure() -> None:
    assert unsure([0.9, 0.5, float("nan"), 0.8, 0.79], 0.8) == [1, 2, 4]
    assert unsure([0.9], 0.9) == []
