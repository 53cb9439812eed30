"""How inputs reach the cores. It knows no database and no HTTP.

On a CPU the best batch is one text on each core at once: padding costs more than batching saves, and one ONNX Runtime
session answers several threads. So a `Pool` has a thread for each core, and a body of many inputs is spread over all; a
question with all the windows over its context is one input.

Inputs wait in one queue, in which every call that waits has one turn for each thread: a call with a thousand of them
does not hold up a call with one. A full queue refuses at once, and the inputs of a caller who has left are dropped.

What no caller waits for has a queue of its own. An input of it begins only when no caller's waits, and only as long as
it leaves a thread free for the caller who comes next (of one thread: only when it has nothing to do).
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tokenizers import Encoding

from models import answers
from models.answers import Answer as Said
from models.answers import Parameters, Raw
from models.errors import Overloaded
from models.inputs import Input
from models.runtime import Runtime

_NO_PARAMETERS = Parameters()
_LOOK_FOR_CALLER_SECONDS = 0.2


@dataclass(frozen=True)
class Timing:
    """Seconds. `tokenize` and `infer` are work, summed over the inputs; `queue` is until the first of them began."""

    tokenize: float
    queue: float
    infer: float

    @property
    def work(self) -> float:
        """Without the wait, which says more of other calls than of this one."""
        return self.tokenize + self.infer

    def __add__(self, later: "Timing") -> "Timing":
        return Timing(self.tokenize + later.tokenize, self.queue + later.queue, self.infer + later.infer)


@dataclass(frozen=True)
class Answer:
    answers: list[Said]
    """One for each input, in their order, as the parameters have it."""
    timing: Timing
    plain: list[Said]
    """The same as without parameters, to compare; empty unless it was wanted."""
    sureness: list[float]
    """Of each input, as `models.answers.sureness` says; empty unless it was wanted."""


class CallerLeft(Exception):
    """Nobody waits for this answer any more."""


@dataclass(frozen=True)
class _Row:
    """What came of one input."""

    answer: Said
    plain: Said | None
    sureness: float | None


@dataclass
class _Call:
    runtime: Runtime
    inputs: Sequence[Input]
    parameters: Parameters
    wants_plain: bool
    wants_sureness: bool
    queue: "deque[_Call]"
    """Where it waits for its turns."""
    rows: dict[int, _Row]
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
        self._busy_limit = max(1, threads - 1)
        """So many threads at most have an input while one of them begins with what no caller waits for."""
        self._turn = threading.Condition()
        self._waiting = 0
        self._busy = 0
        self._closing = False
        self._callers: deque[_Call] = deque()
        self._background: deque[_Call] = deque()
        self._threads = [threading.Thread(target=self._work, name=f"predict-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Inputs of callers that were let in and have not begun."""
        return self._waiting

    async def answer(
        self,
        runtime: Runtime,
        inputs: Sequence[Input],
        parameters: Parameters,
        gone: Callable[[], Awaitable[bool]] | None = None,
        *,
        plain: bool = False,
        sureness: bool = False,
        background: bool = False,
    ) -> Answer:
        """The answers to `inputs`, which `runtime.check` has let pass, as it has the parameters.

        `gone` says whether the caller has left; it is asked now and then. `background`: no caller waits, and no limit
        holds but the one of whoever asks. Raises `Overloaded` if the queue is full, `CallerLeft` if the caller went
        first, and what the runtime raises.
        """
        loop = asyncio.get_running_loop()
        call = _Call(
            runtime=runtime,
            inputs=inputs,
            parameters=parameters,
            wants_plain=plain,
            wants_sureness=sureness,
            queue=self._background if background else self._callers,
            rows={},
            loop=loop,
            done=loop.create_future(),
            next_row=iter(range(len(inputs))),
        )
        self._let_in(call)
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
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()

    def _let_in(self, call: _Call) -> None:
        turns = min(len(call.inputs), len(self._threads))
        with self._turn:
            if call.queue is self._callers:
                if self._waiting >= self._limit:
                    raise Overloaded("too many inputs wait for an answer", code="predict_queue_full", retry_after=1)
                self._waiting += len(call.inputs)
            call.queue.extend([call] * turns)
            self._turn.notify(turns)

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            call, row = turn
            try:
                self._answer_row(call, row)
            except Exception as error:  # noqa: BLE001 - it is the caller's to handle, and the thread must live
                self._finish(call, error)
            with self._turn:
                self._busy -= 1
                if not call.over:
                    # Nobody has to be woken for it: this thread is about to look.
                    call.queue.append(call)

    def _next(self) -> tuple[_Call, int] | None:
        """The input whose turn it is, by its place in its call; waits for one. None: the pool closes."""
        with self._turn:
            while not self._closing:
                if self._callers:
                    call = self._callers.popleft()
                elif self._background and self._busy < self._busy_limit:
                    call = self._background.popleft()
                else:
                    self._turn.wait()
                    continue
                row = None if call.over else next(call.next_row, None)
                if row is not None:
                    self._busy += 1
                    if call.queue is self._callers:
                        self._waiting -= 1
                    return call, row
        return None

    def _answer_row(self, call: _Call, row: int) -> None:
        began = time.perf_counter()
        item, runtime = call.inputs[row], call.runtime
        encodings = runtime.tokenize([item])
        tokenized = time.perf_counter()
        raw = runtime.answers([item], encodings)
        found = _decoded(call, item, encodings[0], raw[0])
        inferred = time.perf_counter()
        with call.lock:
            call.began_at = min(call.began_at or began, began)
            call.tokenize += tokenized - began
            call.infer += inferred - tokenized
            call.rows[row] = found
            complete = len(call.rows) == len(call.inputs)
        if complete:
            self._finish(call, _whole(call))

    def _finish(self, call: _Call, outcome: Answer | Exception) -> None:
        # Of one who has left, the loop may be closed.
        if self._drop(call):
            call.loop.call_soon_threadsafe(_tell, call.done, outcome)

    def _drop(self, call: _Call) -> bool:
        """Nothing of this call is begun any more; what it had waiting makes room for others. False: it was over."""
        with call.lock:
            if call.over:
                return False
            call.over = True
        unbegun = sum(1 for _ in call.next_row)
        if call.queue is self._callers:
            with self._turn:
                self._waiting -= unbegun
        return True


def _decoded(call: _Call, item: Input, encodings: Sequence[Encoding], raw: Sequence[Raw]) -> _Row:
    """What `raw`, the logits of one input, means to whoever asked."""
    runtime = call.runtime
    answer = runtime.decode(item, encodings, raw, call.parameters)
    plain, sure = None, None
    if call.wants_plain:
        same = call.parameters == _NO_PARAMETERS
        plain = answer if same else runtime.decode(item, encodings, raw, _NO_PARAMETERS)
    if call.wants_sureness:
        sure = answers.sureness(runtime.kind, raw, answer, any_of=runtime.multi_label)
    return _Row(answer, plain, sure)


def _whole(call: _Call) -> Answer:
    rows = [call.rows[place] for place in range(len(call.inputs))]
    return Answer(
        answers=[row.answer for row in rows],
        timing=Timing(call.tokenize, call.began_at - call.asked_at, call.infer),
        plain=[row.plain for row in rows if row.plain is not None],
        sureness=[row.sureness for row in rows if row.sureness is not None],
    )


def _tell(done: "asyncio.Future[Answer]", outcome: Answer | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
