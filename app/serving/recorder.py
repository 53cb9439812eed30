"""Keeps a sample of what was asked and answered, off the path of requests. It knows no database and no HTTP.

`keep` draws, gives an id and puts the call into a queue; a thread redacts, and hands batches to `write`. The queue has
a budget: a call for which there is no room, one that cannot be redacted in time and one that could not be written are
dropped and counted. Nothing is ever stored as it came where the deployment redacts.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

import structlog

from app.serving.redaction import Redaction, Unredacted
from app.serving.shelf import Pointer
from models.answers import Answer
from models.captures import Kept
from models.figures import Arm
from models.inputs import Input, Pair, Question, Words, as_json
from models.specs import Capture
from models.tables import new_id, utc_now

_BATCH_INPUTS = 500
_OVERHEAD = 500  # characters, about: an answer, and what Python needs
_SAY_EVERY_SECONDS = 60.0

log = structlog.get_logger("limbeck.recorder")


@dataclass(frozen=True)
class _Call:
    id: str
    pointer: Pointer
    capture: Capture
    arm: Arm
    student_id: str
    inputs: Sequence[Input]
    answers: Sequence[Answer]
    at: datetime
    size: int


class Recorder:
    def __init__(
        self,
        write: Callable[[Sequence[Kept]], None],
        *,
        most_waiting: int = 64 * 1024**2,
        interval: float = 0.1,
    ) -> None:
        """`most_waiting` is in characters; `interval`, in seconds, is how long calls gather before they are written."""
        self._write = write
        self._most_waiting = most_waiting
        self._interval = interval
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._dropped = 0
        self._said_at = -_SAY_EVERY_SECONDS
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float = 10.0) -> None:
        """What waits is written first, as far as that goes in so many seconds: patterns may be slow."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def dropped(self) -> int:
        """Inputs that should have been kept and were not."""
        return self._dropped

    def keep(
        self, pointer: Pointer, arm: Arm, student_id: str, inputs: Sequence[Input], answers: Sequence[Answer]
    ) -> str | None:
        """The id of this call if it is kept. Never blocks.

        The row of one input has this id; those of n have the ids `<id>.0` to `<id>.n-1`. They are there a moment later.
        """
        capture = pointer.traffic.capture
        if capture is None or random.random() >= capture.sample:  # noqa: S311 - a sample, and no secret
            return None
        size = sum(_size(item) + _OVERHEAD for item in inputs)
        with self._lock:
            room = self._waiting + size <= self._most_waiting
            if room:
                self._waiting += size
        if not room:
            self._drop(len(inputs), "the queue is full", pointer.name)
            return None
        id_ = new_id("pr")
        self._queue.put(_Call(id_, pointer, capture, arm, student_id, inputs, answers, utc_now(), size))
        return id_

    def _work(self) -> None:
        ended = False
        while not ended:
            calls, ended = self._gather()
            kept = [one for call in calls for one in self._redacted(call)]
            if kept:
                self._hand_over(kept)
            with self._lock:
                self._waiting -= sum(call.size for call in calls)

    def _gather(self) -> tuple[list[_Call], bool]:
        """The calls of one interval, or as many as make a batch; and whether they are the last."""
        call = self._queue.get()
        until = time.monotonic() + self._interval
        calls: list[_Call] = []
        while call is not None:
            calls.append(call)
            if sum(len(one.inputs) for one in calls) >= _BATCH_INPUTS:
                return calls, False
            try:
                call = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return calls, False
        return calls, True

    def _redacted(self, call: _Call) -> list[Kept]:
        try:
            redaction = Redaction.of(call.capture.redact)
            pairs = [
                redaction.kept(as_json(item), answer) for item, answer in zip(call.inputs, call.answers, strict=True)
            ]
        except Unredacted as error:
            self._drop(len(call.inputs), str(error), call.pointer.name)
            return []
        ids = [call.id] if len(pairs) == 1 else [f"{call.id}.{place}" for place in range(len(pairs))]
        pointer = call.pointer
        return [
            Kept(id_, pointer.owner, pointer.deployment_id, call.student_id, call.arm, *pair, call.at, call.capture)
            for id_, pair in zip(ids, pairs, strict=True)
        ]

    def _hand_over(self, kept: Sequence[Kept]) -> None:
        try:
            self._write(kept)
        except Exception as error:  # noqa: BLE001 - a database that is away must not end this thread
            self._drop(len(kept), f"they were not written ({type(error).__name__})")

    def _drop(self, inputs: int, reason: str, deployment: str | None = None) -> None:
        with self._lock:
            self._dropped += inputs
            silent = time.monotonic() < self._said_at + _SAY_EVERY_SECONDS
            if not silent:
                self._said_at = time.monotonic()
        if not silent:
            log.warning("captures were dropped", reason=reason, deployment=deployment, dropped=self._dropped)


def _size(item: Input) -> int:
    """Characters."""
    match item:
        case str():
            return len(item)
        case Pair(text, pair):
            return len(text) + len(pair)
        case Words(words):
            return sum(map(len, words))
        case Question(question, context):
            return len(question) + len(context)
        case _:
            assert_never(item)
