"""A few steps of every phase before the long work: whether it runs at all, and how long a step takes.

A copy of the student is trained on a few rows with answers that mean nothing, and thrown away. Nothing is reported, and
no file is left.
"""

import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.specs import Phase
from worker.checkpoints import Checkpoints
from worker.data import Answers, batches
from worker.features import Features
from worker.objectives import active, features, needs_teacher
from worker.outputs import TrainingSet
from worker.protocol import PhaseName, StopReason
from worker.run import Run
from worker.students import Student
from worker.teaching import subset
from worker.training import train

_STEPS = 3
# The first step of a process pays for what is set up once.
_TIMED = 2


class _Nobody:
    """A report that nobody hears; `times` are when steps ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def phase(self, phase: PhaseName) -> None: ...

    def progress(self, progress: float, eta_seconds: float | None = None) -> None: ...

    def metric(self, arm: str, stage: int, phase: int, name: str, step: int, value: float) -> None: ...

    def event(self, code: str, message: str, **data: Any) -> None: ...

    def checkpoint(self, step: int, path: Path) -> None: ...

    def stop_requested(self) -> StopReason | None:
        return None


def rehearse(run: Run, student: Student, phases: Sequence[Phase], teacher: nn.Module | None) -> float:
    """Train a copy of `student` for a few steps of each phase; the seconds that all of its phases will about take.

    `teacher` is who is looked into where a phase does. Raises what training raises, before anything was spent on it.
    """
    run.check_stop()
    whole = run.encoded(student.tokenizer, "train")
    # Rows without a label get the first one here: a phase on labels alone must find some in any few rows.
    targets = run.kind.targets(run.data.train, whole)
    targets = targets.nan_to_num() if targets.is_floating_point() else targets.clamp(min=0)
    seconds = 0.0
    for phase in phases:
        plan = batches(whole.lengths, phase.schedule.batch_tokens, seed=run.spec.seed, epoch=0)
        rows = np.concatenate(plan[:_STEPS])
        few = subset(whole, rows.tolist())
        places = [1] * len(few) if few.places is None else [len(one) for one in few.places]
        width = int(student.network.config.num_labels) if run.kind.shape != "span" else 2
        nothing = Answers.of([np.zeros((count, width), np.float32) for count in places], width)
        data = TrainingSet(
            few,
            targets[torch.from_numpy(rows)],
            (nothing,) if needs_teacher(active(phase.objectives)) else (),
            (1.0,),
            "logits",
            run.kind.shape,
            run.kind.nature,
        )
        step = _seconds_of_a_step(run, student, phase, data, teacher)
        seconds += step * len(plan) * phase.schedule.epochs
    return seconds


def _seconds_of_a_step(run: Run, student: Student, phase: Phase, data: TrainingSet, teacher: nn.Module | None) -> float:
    copy = deepcopy(student.network).to(run.accelerator.device)
    wanted = features(active(phase.objectives))
    matching = None
    if wanted and teacher is not None:
        teacher.to(run.accelerator.device).eval()
        kept = None if student.kept is None else torch.from_numpy(student.kept)
        matching = Features(wanted, copy, teacher, seed=run.spec.seed, kept=kept)
    report, times = _Nobody(), [time.monotonic()]
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(
                copy,
                data,
                lambda _: {run.kind.primary: 0.0},
                phase.objectives,
                phase.schedule,
                seed=run.spec.seed,
                unit="rehearsal-0-0",
                arm="distilled",
                stage=0,
                phase=0,
                checkpoints=Checkpoints(Path(folder), []),
                report=report,
                accelerator=run.accelerator,
                checkpoint_seconds=float("inf"),
                on_progress=lambda _done, _total: times.append(time.monotonic()),
                score=run.kind.primary,
                max_steps=_STEPS,
                matching=matching,
            )
        finally:
            if matching is not None:
                matching.close()
    return min(after - before for before, after in zip(times[-_TIMED:], times[-_TIMED + 1 :], strict=False))
