"""The trainer process: `python -P -m worker.trainer`, one a job, started and watched by a supervisor.

It has no database, broker or key. It reads its assignment from standard input and writes JSON lines to what was
standard output when it began. It ends itself when its supervisor is gone, or has not renewed the lease for too long:
then another worker may have the job, and two must not train it.
"""

import ctypes
import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from models.errors import JobFailure, LimbeckError
from worker.protocol import (
    Assignment,
    CheckpointLine,
    ErrorLine,
    EventLine,
    Line,
    MetricLine,
    PhaseLine,
    PhaseName,
    ProgressLine,
    ResultLine,
    Stopped,
    StoppedLine,
    StopReason,
)
from worker.recipe import distil

_NICENESS = 10
_PR_SET_PDEATHSIG = 1
_ABANDONED = 70  # EX_SOFTWARE
_PROGRESS_EVERY = 0.5


class PipeReport:
    """Tells the supervisor, and hears from it. Implements `worker.protocol.Report`."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._stop: StopReason | None = None
        self._progress_at = 0.0
        self.last_tick = time.monotonic()

    def phase(self, phase: PhaseName) -> None:
        self._say(PhaseLine(phase=phase))

    def progress(self, progress: float, eta_seconds: float | None = None) -> None:
        now = time.monotonic()
        if now - self._progress_at >= _PROGRESS_EVERY or progress >= 1:
            self._progress_at = now
            self._say(ProgressLine(progress=progress, eta_seconds=eta_seconds))

    def metric(self, arm: str, stage: int, phase: int, name: str, step: int, value: float) -> None:
        self._say(MetricLine(arm=arm, stage=stage, phase=phase, name=name, step=step, value=value))

    def event(self, code: str, message: str, **data: Any) -> None:
        self._say(EventLine(code=code, message=message, data=data))

    def checkpoint(self, step: int, path: Path) -> None:
        self._say(CheckpointLine(step=step, path=path))

    def stop_requested(self) -> StopReason | None:
        return self._stop

    def finish(self, line: ResultLine | StoppedLine | ErrorLine) -> None:
        self._say(line)

    def listen(self, lines: IO[str]) -> None:
        """Hear ticks and a request to stop, until the supervisor closes the pipe; then end the process."""
        for text in lines:
            message = json.loads(text)
            self.last_tick = time.monotonic()
            if message.get("stop") in ("cancel", "drain"):
                self._stop = message["stop"]
        os._exit(_ABANDONED)

    def _say(self, line: Line) -> None:
        text = line.model_dump_json()
        with self._lock:
            self._out.write(text + "\n")
            self._out.flush()


def main() -> int:
    _die_with_parent()
    os.nice(_NICENESS)
    out = _private_stdout()
    lines = sys.stdin
    assignment = Assignment.model_validate_json(lines.readline())
    report = PipeReport(out)
    threading.Thread(target=report.listen, args=(lines,), name="listen", daemon=True).start()
    threading.Thread(target=_watch, args=(report, assignment.tick_timeout), name="watch", daemon=True).start()
    try:
        folder = distil(assignment, report)
    except Stopped as stopped:
        report.finish(StoppedLine(reason=stopped.reason))
    except JobFailure as failure:
        report.finish(ErrorLine(code=failure.code, message=failure.message, hint=failure.hint, pointer=failure.pointer))
    except LimbeckError as failure:
        report.finish(ErrorLine(code=failure.code, message=failure.message, hint=failure.hint))
    except MemoryError:
        report.finish(
            ErrorLine(
                code="out_of_memory",
                message="this machine has not enough memory for the job",
                hint="give schedule.micro_batch_tokens, or a smaller student or dataset",
            )
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        report.finish(
            ErrorLine(code="storage_full", message="the worker's disk is full", hint="free space, then submit it again")
        )
    else:
        report.finish(ResultLine(folder=folder))
    return 0


def _die_with_parent() -> None:
    """SIGKILL for this process when the thread that spawned it ends. Elsewhere than on Linux the pipe must do."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_ABANDONED)  # it died before the call


def _private_stdout() -> IO[str]:
    """What was standard output, for the protocol alone; whatever a library prints goes to standard error."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w", encoding="utf-8")


def _watch(report: PipeReport, timeout: float) -> None:
    while time.monotonic() - report.last_tick < timeout:
        time.sleep(min(1.0, timeout / 4))
    os._exit(_ABANDONED)


if __name__ == "__main__":
    status = main()
    # Not sys.exit: the listening thread sits in a read, and the interpreter would wait for its lock.
    sys.stderr.flush()
    os._exit(status)
