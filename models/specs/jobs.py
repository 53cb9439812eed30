"""A whole job: what a caller sends, and what is stored and runs.

`stages`, or the short form of one stage at the top, in `JobSpec`; `ResolvedSpec` has only `stages[].phases[]`.
"""

from typing import Annotated, Literal

from pydantic import Field

from models.specs.base import Column, Spec
from models.specs.data import DatasetSpec
from models.specs.gates import GateSpec
from models.specs.methods import Method, Phase
from models.specs.objectives import Objectives
from models.specs.schedules import Schedule
from models.specs.students import Student
from models.specs.tasks import Task
from models.specs.teachers import Teacher


class Stage(Spec):
    """One teacher-to-student step: `phases`, or the short form of one, `method` or `objectives` with `schedule`."""

    student: Student
    phases: Annotated[list[Phase], Field(min_length=1, max_length=8)] | None = None
    method: Method | None = None
    objectives: Objectives | None = None
    schedule: Schedule | None = None
    teacher: Literal["previous", "original"] = "previous"
    """Who teaches it: the student of the stage before, or the job's teachers."""


class Export(Spec):
    precision: Literal["auto", "fp32", "int8"] = "auto"
    """`auto` serves int8 if on the validation rows it agrees with fp32 on at least 98.5 %, loses no significant quality
    and has a lower median latency."""
    teacher: bool = False
    """Publish the teacher as ONNX with the student, so that a deployment can fall back on it."""


class Evaluation(Spec):
    slices: tuple[Column, ...] = Field((), max_length=8)
    """Columns of the dataset: the report has a table of each over its values, beside those of lengths and of labels."""


DeploymentName = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]


class Promote(Spec):
    """Move a deployment to the student when the job succeeds and its gate holds."""

    deployment: DeploymentName
    gate: GateSpec = GateSpec()


Url = Annotated[str, Field(max_length=2000, pattern=r"^https?://[^\s]+$")]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Webhook(Spec):
    """An address that is told what becomes of this job alone: docs/webhooks.md."""

    url: Url
    secret: SecretName = "webhook-signing"  # noqa: S105 - its name
    """The name of the secret that signs what is sent: `whsec_…`."""


class Resources(Spec):
    device: Literal["auto", "cpu", "gpu"] = "auto"
    gpus: int = Field(1, ge=1, le=64)


class Common(Spec):
    name: str = Field("", max_length=200)
    task: Task
    dataset: DatasetSpec
    teachers: Annotated[list[Teacher], Field(min_length=1, max_length=16)]
    control: bool = True
    """Train the same student without the teacher too, and compare."""
    export: Export = Export()
    evaluation: Evaluation = Evaluation()
    promote: Promote | None = None
    resources: Resources = Resources()
    priority: int = Field(0, ge=-100, le=100)
    """Of the jobs that wait, higher ones go first."""
    max_seconds: int | None = Field(None, ge=1)
    """The job fails with the code `time_limit` after so much training time."""
    seed: int = Field(0, ge=0, lt=2**31)
    combine: Literal["probabilities", "logits"] | None = None
    """How several teachers become one: the weighted mean of their probabilities (the default), or of their logits."""
    webhook: Webhook | None = None


class JobSpec(Common):
    """What a caller sends: `stages`, or the short form of one stage at the top (`student`, `method`, `schedule`)."""

    stages: Annotated[list[Stage], Field(min_length=1, max_length=8)] | None = None
    student: Student | None = None
    phases: Annotated[list[Phase], Field(min_length=1, max_length=8)] | None = None
    method: Method | None = None
    objectives: Objectives | None = None
    schedule: Schedule | None = None


class ResolvedStage(Spec):
    student: Student
    phases: Annotated[list[Phase], Field(min_length=1)]
    teacher: Literal["previous", "original"] = "previous"


class ResolvedSpec(Common):
    """The spec with every default filled in and no short form left: what is stored and what runs."""

    stages: Annotated[list[ResolvedStage], Field(min_length=1)]
