"""The trainer process, one a job: `python -P -m worker.trainer <pid of its worker>`, started by a supervisor.

It has no database, broker or key. It reads its assignment from standard input and writes JSON lines to what was
standard output when it began. It ends itself when its worker is gone, or has not renewed the lease for too long: then
another worker may have the job, and two must not train it.
"""

import contextlib
import ctypes
import errno
import json
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
_ABANDONED = 70  # EX_SOFTWARE


def die_with(parent: int) -> None:
    """SIGKILL for this process when the thread that spawned it ends. Elsewhere than on Linux the pipe must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_ABANDONED)  # it died before the call


class Ear:
    """Hears the supervisor from a thread of its own: the assignment, then ticks and at most one request to stop.

    Ends the process when the pipe is closed, or when nothing was heard for `patience` seconds.
    """

    def __init__(self, descriptor: int) -> None:
        self.patience = 60.0
        self.stop: str | None = None
        self.assignment: queue.Queue[str] = queue.Queue()
        self._descriptor = descriptor
        threading.Thread(target=self._listen, name="ear", daemon=True).start()

    def _listen(self) -> None:
        lines = self._lines()
        first = next(lines, None)
        if first is not None:
            self.assignment.put(first)
        for line in lines:
            message = json.loads(line)
            if message.get("stop") in ("cancel", "drain"):
                self.stop = message["stop"]
        os._exit(_ABANDONED)

    def _lines(self) -> Iterator[str]:
        buffer = b""
        heard = time.monotonic()
        while True:
            silence = heard + self.patience - time.monotonic()
            # Asked a second time, without waiting: a library that kept every thread of this process from running (as
            # loading torch does) has let the time pass, and the ticks wait in the pipe.
            if not self._readable(min(max(silence, 0.0), 1.0)) and silence <= 0 and not self._readable(0):
                os._exit(_ABANDONED)
            if not self._readable(0):
                continue
            read = os.read(self._descriptor, 1 << 16)
            if not read:
                return
            heard = time.monotonic()
            *lines, buffer = (buffer + read).split(b"\n")
            yield from (line.decode() for line in lines)

    def _readable(self, seconds: float) -> bool:
        return bool(select.select([self._descriptor], [], [], seconds)[0])


# Before the imports below: they load torch, which takes seconds in which the worker may die or lose its lease.
if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    _ear = Ear(0)

from models.errors import JobFailure, LimbeckError  # noqa: E402
from models.places import MANIFEST  # noqa: E402
from worker.protocol import (  # noqa: E402
    Assignment,
    CheckpointLine,
    ErrorLine,
    EventLine,
    Line,
    MetricLine,
    PhaseLine,
    PhaseName,
    ProgressLine,
    Report,
    ResultLine,
    Stopped,
    StoppedLine,
    StopReason,
)
from worker.recipe import distil  # noqa: E402

_NICENESS = 10
_KILL_ME_FIRST = "500"
"""Of 1000: when memory runs out, the kernel takes the trainer and not the service."""
_PROGRESS_EVERY = 0.5

Recipe = Callable[[Assignment, Report], Path]


class PipeReport:
    """Tells the supervisor, and hears from it. Implements `worker.protocol.Report`."""

    def __init__(self, out: IO[str], ear: Ear) -> None:
        self._out = out
        self._ear = ear
        self._lock = threading.Lock()
        self._progress_at = 0.0

    def phase(self, phase: PhaseName) -> None:
        self.say(PhaseLine(phase=phase))

    def progress(self, progress: float, eta_seconds: float | None = None) -> None:
        now = time.monotonic()
        if now - self._progress_at >= _PROGRESS_EVERY or progress >= 1:
            self._progress_at = now
            self.say(ProgressLine(progress=progress, eta_seconds=eta_seconds))

    def metric(self, arm: str, stage: int, phase: int, name: str, step: int, value: float) -> None:
        self.say(MetricLine(arm=arm, stage=stage, phase=phase, name=name, step=step, value=value))

    def event(self, code: str, message: str, **data: Any) -> None:
        self.say(EventLine(code=code, message=message, data=data))

    def checkpoint(self, step: int, path: Path) -> None:
        self.say(CheckpointLine(step=step, path=path))

    def stop_requested(self) -> StopReason | None:
        match self._ear.stop:
            case "cancel" | "drain" as reason:
                return reason
            case _:
                return None

    def say(self, line: Line) -> None:
        text = line.model_dump_json()
        with self._lock:
            self._out.write(text + "\n")
            self._out.flush()


def train(recipe: Recipe, assignment: Assignment, report: PipeReport) -> ResultLine | StoppedLine | ErrorLine:
    """The last line of a trainer. An error that is not listed here is one of ours: it goes through, as a crash."""
    try:
        folder = recipe(assignment, report)
        teacher = assignment.teacher_export if (assignment.teacher_export / MANIFEST).is_file() else None
        return ResultLine(folder=folder, teacher=teacher)
    except Stopped as stopped:
        return StoppedLine(reason=stopped.reason)
    except JobFailure as failure:
        return ErrorLine(code=failure.code, message=failure.message, hint=failure.hint, pointer=failure.pointer)
    except LimbeckError as failure:
        return ErrorLine(code=failure.code, message=failure.message, hint=failure.hint)
    except MemoryError:
        return ErrorLine(
            code="out_of_memory",
            message="this machine has not enough memory for the job",
            hint="give schedule.micro_batch_tokens, or a smaller student or dataset",
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return ErrorLine(
            code="storage_full", message="the worker's disk is full", hint="free space, then submit it again"
        )


def main(ear: Ear) -> int:
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_KILL_ME_FIRST, "ascii")
    out = _private_stdout()
    assignment = Assignment.model_validate_json(ear.assignment.get())
    ear.patience = assignment.tick_timeout
    report = PipeReport(out, ear)
    report.say(train(distil, assignment, report))
    return 0


def _private_stdout() -> IO[str]:
    """What was standard output, for the protocol alone; whatever a library prints goes to standard error."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w", encoding="utf-8")


if __name__ == "__main__":
    status = main(_ear)
    sys.stderr.flush()
    # Not sys.exit: nothing that a library left running may keep the process, or change how it ended.
    os._exit(status)
