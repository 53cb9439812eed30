"""How inputs reach the cores. It knows no database and no HTTP.

On a CPU the best batch is one text on each core at once: padding costs more than batching saves, and one ONNX Runtime
session answers several threads. So a `Pool` has a thread for each core, and a body of many inputs is spread over all; a
question with all the windows over its context is one input.

Inputs wait in one queue, in which every call that waits has one turn for each thread: a call with a thousand of them
does not hold up a call with one. A full queue refuses at once, and the inputs of a caller who has left are dropped.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from models import answers
from models.answers import Parameters
from models.errors import Overloaded
from models.inputs import Input
from models.runtime import Runtime

_LOOK_FOR_CALLER_SECONDS = 0.2


@dataclass(frozen=True)
class Timing:
    """Seconds. `tokenize` and `infer` are work, summed over the inputs; `queue` is until the first of them began."""

    tokenize: float
    queue: float
    infer: float


@dataclass(frozen=True)
class Answer:
    answers: list[answers.Answer]
    """One for each input, in their order."""
    timing: Timing


class CallerLeft(Exception):
    """Nobody waits for this answer any more."""


@dataclass
class _Call:
    runtime: Runtime
    inputs: Sequence[Input]
    parameters: Parameters
    answers: dict[int, answers.Answer]
    """By the place of its input."""
    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[Answer]"
    next_row: Iterator[int]
    lock: threading.Lock = field(default_factory=threading.Lock)
    asked_at: float = field(default_factory=time.perf_counter)
    began_at: float = 0.0
    tokenize: float = 0.0
    infer: float = 0.0
    over: bool = False
    """Answered, failed or dropped: what is left of it in the queue is skipped."""


class Pool:
    """`threads` threads that answer one input each. `limit` inputs may wait; a call is let in while fewer do."""

    def __init__(self, threads: int, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting = 0
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"predict-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Inputs that were let in and have not begun."""
        return self._waiting

    async def answer(
        self,
        runtime: Runtime,
        inputs: Sequence[Input],
        parameters: Parameters,
        gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> Answer:
        """The answers to `inputs`, which `runtime.check` has let pass, as it has the parameters.

        `gone` says whether the caller has left; it is asked now and then. Raises `Overloaded` if the queue is full,
        `CallerLeft` if the caller went first.
        """
        with self._lock:
            if self._waiting >= self._limit:
                raise Overloaded("too many inputs wait for an answer", code="predict_queue_full", retry_after=1)
            self._waiting += len(inputs)
        loop = asyncio.get_running_loop()
        call = _Call(
            runtime=runtime,
            inputs=inputs,
            parameters=parameters,
            answers={},
            loop=loop,
            done=loop.create_future(),
            next_row=iter(range(len(inputs))),
        )
        for _ in range(min(len(inputs), len(self._threads))):
            self._queue.put(call)
        try:
            while True:
                finished, _ = await asyncio.wait({call.done}, timeout=_LOOK_FOR_CALLER_SECONDS)
                if finished:
                    return call.done.result()
                if gone is not None and await gone():
                    raise CallerLeft
        finally:
            self._drop(call)

    def close(self) -> None:
        """End the threads, each after the input that it has. Whoever closes a pool has first seen its callers off."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if call.over:
                continue
            row = next(call.next_row, None)
            if row is None:
                continue
            with self._lock:
                self._waiting -= 1
            try:
                self._answer_row(call, row)
            except Exception as error:  # noqa: BLE001 - it is the caller's to handle, and the thread must live
                self._finish(call, error)
            else:
                self._queue.put(call)

    def _answer_row(self, call: _Call, row: int) -> None:
        began = time.perf_counter()
        item = call.inputs[row]
        encodings = call.runtime.tokenize([item])
        tokenized = time.perf_counter()
        raw = call.runtime.answers([item], encodings)
        answer = call.runtime.decode(item, encodings[0], raw[0], call.parameters)
        inferred = time.perf_counter()
        with call.lock:
            call.began_at = min(call.began_at or began, began)
            call.tokenize += tokenized - began
            call.infer += inferred - tokenized
            call.answers[row] = answer
            complete = len(call.answers) == len(call.inputs)
        if complete:
            timing = Timing(call.tokenize, call.began_at - call.asked_at, call.infer)
            self._finish(call, Answer([call.answers[place] for place in range(len(call.inputs))], timing))

    def _finish(self, call: _Call, outcome: Answer | Exception) -> None:
        self._drop(call)
        call.loop.call_soon_threadsafe(_tell, call.done, outcome)

    def _drop(self, call: _Call) -> None:
        """Nothing of this call is begun any more; what it had waiting makes room for others."""
        with call.lock:
            if call.over:
                return
            call.over = True
        unbegun = sum(1 for _ in call.next_row)
        with self._lock:
            self._waiting -= unbegun


def _tell(done: "asyncio.Future[Answer]", outcome: Answer | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
