"""Which arm a call goes to, and which of its inputs go on to the fallback. Pure: chance comes in as a number."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

from models.specs.deployments import Canary

Arm = Literal["stable", "canary"]

_BYTES = 8


def arm(canary: Canary, deployment_id: str, sticky: str | None, draw: float) -> Arm:
    """The arm of a call: with a `sticky` key always the same, else as `draw`, uniform in [0, 1), has it.

    A key's place in [0, 1) depends on the key and on the deployment, and neither on the student nor on the version:
    whoever is in the canary stays there while its share grows, and who is in one deployment's says nothing of another.
    """
    place = _place(deployment_id, sticky) if sticky else draw
    return "canary" if place < canary.fraction else "stable"


def unsure(sureness: Sequence[float], threshold: float) -> list[int]:
    """The places of the inputs whose answer does not stand: it is less sure than `threshold`, or is no number."""
    return [place for place, sure in enumerate(sureness) if math.isnan(sure) or sure < threshold]


def _place(deployment_id: str, sticky: str) -> float:
    """Uniform in [0, 1)."""
    digest = blake2b(f"{deployment_id}\0{sticky}".encode(), digest_size=_BYTES).digest()
    # 53 bits are what a float holds: with all 64 the largest would round to 1.
    return (int.from_bytes(digest) >> 11) / 2**53
