"""What every part of one job's story needs: the assignment, the rows, and whom to tell."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from models.specs import ResolvedSpec
from worker.cache import HostCache
from worker.checkpoints import Checkpoints
from worker.data import Encoded
from worker.protocol import Assignment, PhaseName, Report, Stopped
from worker.tasks.base import Data, Split, TaskKind

SPLITS = ("train", "validation", "test")
_SHARES: Mapping[str, tuple[float, float]] = {
    "preflight": (0.0, 0.02),
    "teach": (0.02, 0.40),
    "distil": (0.40, 0.88),
    "export": (0.88, 0.92),
    "evaluate": (0.92, 0.99),
    "publish": (0.99, 1.0),
}
"""Where in the job's progress each phase begins and ends: a guess from its usual cost."""


@dataclass
class Counters:
    """What was computed and what was known already; they stand in the report."""

    teacher_training_steps: int = 0
    teacher_forward_rows: int = 0
    cached_signal_rows: int = 0
    student_training_steps: int = 0
    control_training_steps: int = 0


@dataclass
class Run:
    """One job on its way."""

    assignment: Assignment
    report: Report
    kind: TaskKind
    data: Data
    accelerator: Accelerator
    checkpoints: Checkpoints
    cache: HostCache
    deadline: float | None
    counters: Counters = field(default_factory=Counters)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    phase: PhaseName = "preflight"
    tokenized: dict[tuple[int, str], tuple[Any, Encoded]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def spec(self) -> ResolvedSpec:
        return self.assignment.spec

    def split(self, name: str) -> Split:
        found: Split = getattr(self.data, name)
        return found

    def encoded(self, tokenizer: Any, split: str) -> Encoded:
        """A split as this tokenizer cuts it. All arms of a student share one tokenizer, and the work is done once."""
        key = (id(tokenizer), split)
        if key not in self.tokenized:
            # The tokenizer is kept too: an id may be given again to another object once its own is gone.
            self.tokenized[key] = tokenizer, self.kind.encode(tokenizer, self.split(split).inputs)
        return self.tokenized[key][1]

    @contextmanager
    def in_phase(self, phase: PhaseName) -> Iterator[None]:
        self.phase = phase
        self.report.phase(phase)
        started = time.monotonic()
        yield
        self.seconds[phase] = round(time.monotonic() - started, 2)

    def progress(self, share: float) -> None:
        """`share` of the current phase is done."""
        start, end = _SHARES[self.phase]
        whole = start + (end - start) * min(max(share, 0.0), 1.0)
        spent = time.monotonic() - self.began
        self.report.progress(whole, round(spent / whole * (1 - whole), 1) if whole > 0.03 else None)

    def check_stop(self) -> None:
        reason = self.report.stop_requested()
        if reason is not None:
            raise Stopped(reason)

    def warn(self, code: str, message: str) -> None:
        self.warnings.append((code, message))
        self.report.event(code, message)
