"""What goes into a trainer process and what comes out of it. Knows no torch, so that the supervisor starts at once.

In, on standard input: one line with an `Assignment`, then one line for every successful heartbeat (`{"tick": n}`) and
at most one `{"stop": "cancel" | "drain"}`. Out, on standard output: one JSON object a line, each with a `type`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from models.specs import ResolvedSpec

Arm = Literal["teacher", "distilled", "control", "untrained"]
PhaseName = Literal["preflight", "teach", "distil", "export", "evaluate", "publish"]
StopReason = Literal["cancel", "drain"]


class Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Assignment(Line):
    """All that a trainer knows of its job. Paths are absolute and local; there is no database, broker or key in it."""

    job_id: str
    attempt: int
    spec: ResolvedSpec
    datasets: dict[str, Path]
    """Dataset id to its Parquet file."""
    checkpoints_of_models: dict[str, Path] = {}
    """`student:` and `teacher:` references to their verified local folders."""
    models_folder: Path
    work: Path
    """`attempts/<n>/`: everything that this attempt writes, except for the cache."""
    previous: list[Path] = []
    """The `work` of earlier attempts, newest first: where a checkpoint to go on from may lie."""
    cache: Path
    """Content-addressed: fine-tuned teachers, their signals, control arms. Shared by the jobs of this host."""
    cache_bytes: int
    device: Literal["cpu", "gpu"] = "cpu"
    tick_timeout: float
    """Without a tick for so many seconds the trainer ends itself."""
    checkpoint_seconds: float = 30.0

    @property
    def teacher_export(self) -> Path:
        """Where the teacher's export lies, with its manifest, once the job that asks for it has made it."""
        return self.work / "teacher"


class PhaseLine(Line):
    type: Literal["phase"] = "phase"
    phase: PhaseName


class ProgressLine(Line):
    type: Literal["progress"] = "progress"
    progress: float = Field(ge=0, le=1)
    eta_seconds: float | None = None


class MetricLine(Line):
    type: Literal["metric"] = "metric"
    arm: str
    stage: int
    phase: int
    name: str
    step: int
    value: float


class EventLine(Line):
    type: Literal["event"] = "event"
    code: str
    message: str
    data: dict[str, Any] = {}


class CheckpointLine(Line):
    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: Path


class ResultLine(Line):
    """The job is done: `folder` is the finished student with its manifest, ready to be published."""

    type: Literal["result"] = "result"
    folder: Path
    teacher: Path | None = None
    """The teacher's export with its manifest, where the job asks for it."""


class StoppedLine(Line):
    """The trainer stopped because it was asked to, with a checkpoint written."""

    type: Literal["stopped"] = "stopped"
    reason: StopReason


class ErrorLine(Line):
    """The job cannot go on, however often it is tried."""

    type: Literal["error"] = "error"
    code: str
    message: str
    hint: str | None = None
    pointer: str | None = None


Message = Annotated[
    PhaseLine | ProgressLine | MetricLine | EventLine | CheckpointLine | ResultLine | StoppedLine | ErrorLine,
    Field(discriminator="type"),
]


class Stopped(Exception):
    """Raised by `Report.check` when the trainer has been asked to stop."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason: StopReason = reason


class Report(Protocol):
    """Whom the recipe tells what happens. A list will do in a test."""

    def phase(self, phase: PhaseName) -> None: ...

    def progress(self, progress: float, eta_seconds: float | None = None) -> None:
        """`progress` is the share of the whole job, 0 to 1; the receiver drops what comes too often."""

    def metric(self, arm: str, stage: int, phase: int, name: str, step: int, value: float) -> None: ...

    def event(self, code: str, message: str, **data: Any) -> None: ...

    def checkpoint(self, step: int, path: Path) -> None: ...

    def stop_requested(self) -> StopReason | None:
        """Whether to stop: the training loop asks between steps, writes its checkpoint, and raises `Stopped`."""
