"""Asks another student what a caller was already answered, and counts whether the two agree. Nobody waits for it.

Copies run in the background of the `Pool`. What would let them add up is dropped: a copy that comes while callers'
inputs wait for a core, or while as many inputs as the limit are out. Counts hold what was compared, not what was not.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from app.serving.batching import Pool
from app.serving.counts import Counts
from app.serving.shelf import Loaded, Pointer, Shelf
from models.answers import Answer, Parameters, agree
from models.inputs import Input

_NO_PARAMETERS = Parameters()

log = structlog.get_logger("limbeck.shadowing")


@dataclass(frozen=True)
class Copy:
    """A call that was answered, for a student who was not asked."""

    pointer: Pointer
    arm: Literal["canary", "shadow"]
    candidate: str
    """Whose agreement with the stable student is counted, in this arm."""
    asked: str
    """The candidate if it is a shadow. A canary has answered, and the stable student is asked."""
    inputs: Sequence[Input]
    answers: Sequence[Answer]
    """Those of the one who was asked first, without parameters and without a fallback."""


class Shadows:
    """`limit` is in inputs; a copy of more is made when nothing else is out. To be used on one event loop."""

    def __init__(self, shelf: Shelf, pool: Pool, counts: Counts, *, limit: int = 64) -> None:
        self._shelf = shelf
        self._pool = pool
        self._counts = counts
        self._limit = limit
        self._out = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, copy: Copy) -> bool:
        """Compare soon, if there is room. Never blocks."""
        if self._pool.waiting or (self._out and self._out + len(copy.inputs) > self._limit):
            return False
        student = self._shelf.at_hand(copy.asked)
        if student is None:
            if not self._shelf.ask_for(copy.asked):
                self._failed(copy)
            return False
        self._out += len(copy.inputs)
        task = asyncio.create_task(self._compare(copy, student))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """Nothing more is compared. Comes before the pool's end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(self, copy: Copy, student: Loaded) -> None:
        runtime = student.runtime
        try:
            runtime.check(copy.inputs, _NO_PARAMETERS)
            found = await self._pool.answer(runtime, copy.inputs, _NO_PARAMETERS, background=True)
            agreed = sum(
                agree(*pair, runtime.kind, any_of=runtime.multi_label)
                for pair in zip(copy.answers, found.answers, strict=True)
            )
        except Exception as error:  # noqa: BLE001 - the caller has an answer; that this one failed is what is counted
            log.warning("a copy failed", deployment=copy.pointer.name, student=copy.asked, error=type(error).__name__)
            self._failed(copy)
        else:
            self._compared(copy, agreed, found.timing.work)
        finally:
            self._out -= len(copy.inputs)

    def _compared(self, copy: Copy, agreed: int, seconds: float) -> None:
        """A canary's call was counted when it was answered, and what the stable student took here is not its own."""
        compared = len(copy.inputs)
        if copy.arm == "canary":
            self._counts.note(copy.pointer, "canary", copy.candidate, compared=compared, agreed=agreed)
        else:
            self._counts.note(
                copy.pointer,
                "shadow",
                copy.candidate,
                inputs=compared,
                seconds=seconds,
                compared=compared,
                agreed=agreed,
            )

    def _failed(self, copy: Copy) -> None:
        """A shadow's failure is its own. That the stable student failed with a copy is nothing against the canary."""
        if copy.arm == "shadow":
            self._counts.note(copy.pointer, "shadow", copy.candidate, error=True)
