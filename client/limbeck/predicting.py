"""A call of /predict with any number of inputs: cut into bodies that the service takes, answered in order."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from limbeck.errors import ApiError, Problem
from limbeck.predictions import Predictions, answers_of
from limbeck.transport import Transport, body

MOST_INPUTS = 1024
MOST_BYTES = 2_000_000
"""Of the inputs of one body, as JSON. Both are what a service takes by default. One that takes less says so, and is
sent half as much.
"""
PATIENCE = 120.0
"""Seconds for which a list is offered to a busy service that answers none of it."""

_T = TypeVar("_T")


@dataclass
class Call:
    """What the bodies of one call have in common."""

    transport: Transport[Any]
    path: str
    headers: Mapping[str, str]
    document: Callable[[Any], dict[str, Any]]
    """The body for some of the inputs."""
    heard: float = field(default_factory=time.monotonic)
    """When the service last answered one of them."""

    async def ask(self, inputs: Any) -> Predictions:
        """One body: a single input, or a list."""
        # A prediction changes nothing: it is safe to ask again.
        response = await self.transport.request(
            "POST", self.path, json=self.document(inputs), headers=self.headers, idempotent=True
        )
        self.heard = time.monotonic()
        answers = body(response)
        return Predictions(
            data=answers_of(answers, single=not isinstance(inputs, list)),
            student=response.headers.get("x-limbeck-student"),
            prediction_id=response.headers.get("x-limbeck-prediction"),
            arm=response.headers.get("x-limbeck-arm"),
            answered_by=response.headers.get("x-limbeck-answered-by"),
            server_timing=response.headers.get("server-timing"),
            raw=answers,
        )

    async def ask_all(self, inputs: list[Any], at_once: int) -> Predictions:
        bodies = cut(inputs)
        firsts = [sum(map(len, bodies[:place])) for place in range(len(bodies))]
        asked = [partial(self._ask, first, some, len(bodies) > 1) for first, some in zip(firsts, bodies, strict=True)]
        return joined([part for parts in await self.transport.wire.each(asked, at_once) for part in parts])

    async def _ask(self, first: int, inputs: list[Any], patient: bool) -> list[Predictions]:
        """One body, or the halves of one that the service found too large. `first`: the place of its first input."""
        while True:
            try:
                return [await self.ask(inputs)]
            except ApiError as error:
                if len(inputs) > 1 and _too_large(error):
                    middle = len(inputs) // 2
                    head = await self._ask(first, inputs[:middle], True)
                    return [*head, *await self._ask(first + middle, inputs[middle:], True)]
                # The queue is full, most often of this call's own inputs: as long as it moves there is a place soon.
                if not (patient and error.status == 429 and time.monotonic() - self.heard < PATIENCE):
                    error.problems = tuple(_of_all(problem, first) for problem in error.problems)
                    raise


def cut(inputs: Sequence[_T], most: int = MOST_INPUTS, most_bytes: int = MOST_BYTES) -> list[list[_T]]:
    """`inputs` in order, as lists of at most `most` with at most `most_bytes` of JSON. A larger one stands alone."""
    bodies: list[list[_T]] = [[]]
    filled = 0
    for one in inputs:
        size = len(json.dumps(one, ensure_ascii=False).encode("utf-8", "surrogatepass")) + 1
        if bodies[-1] and (len(bodies[-1]) == most or filled + size > most_bytes):
            bodies.append([])
            filled = 0
        bodies[-1].append(one)
        filled += size
    return bodies


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The answers of several bodies as those of one. What they do not have in common is None, or "mixed"."""
    if len(parts) == 1:
        return parts[0]
    return Predictions(
        data=[one for part in parts for one in part],
        student=_common({part.student for part in parts}, None),
        arm=_common({part.arm for part in parts}, "mixed"),
        answered_by=_common({part.answered_by for part in parts}, "mixed"),
        raw=[one for part in parts for one in part.raw],
        parts=tuple(parts),
    )


def _common(found: set[str | None], otherwise: str | None) -> str | None:
    return next(iter(found)) if len(found) == 1 else otherwise


def _too_large(error: ApiError) -> bool:
    return error.status == 413 or any(problem.code == "too_many_inputs" for problem in error.problems)


def _of_all(problem: Problem, first: int) -> Problem:
    """`/inputs/3` of a body as its place in the whole list."""
    match problem.pointer.split("/"):
        case ["", "inputs", place, *rest] if place.isdecimal():
            return replace(problem, pointer="/".join(["", "inputs", str(int(place) + first), *rest]))
        case _:
            return problem
