"""What a deployment should be: which student answers, and what else happens to a call."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from models.specs.base import Share, Spec, not_yet
from models.specs.gates import GateSpec

StudentId = Annotated[str, Field(pattern=r"^st_[0-9a-z]{1,40}$")]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise PydanticCustomError("bad_pattern", "is no regular expression: {why}", {"why": str(error)}) from error
    return text


TEACHER = "teacher"
"""The fallback's name for the teacher that was published with a student."""

Pattern = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_pattern)]


def teacher_of(student_id: str) -> str:
    """The shelf's name for a student's teacher."""
    return f"{student_id}/{TEACHER}"


class Canary(Spec):
    """A share of the calls is answered by another student."""

    student: StudentId
    fraction: Share
    """Calls of one `X-Limbeck-Sticky` key always go to the same arm; others are drawn at random."""


class Shadow(Spec):
    """Another student is asked too. Its answers are compared with those that were given, and never returned."""

    student: StudentId
    fraction: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    """The share of the calls that is copied; copies are dropped when the cores are busy."""


class Fallback(Spec):
    """Inputs on which the student is not sure are answered by a larger network: its teacher, or another student.

    Just one of `threshold`, `target_accuracy` and `target_agreement` says when. A target is looked up in the table of
    the student's report, which was made on held-out rows. The threshold that was found, and its coverage, then stand
    beside the target; sent back so, the target is looked up again.
    """

    to: Annotated[str, Field(pattern=r"^(?:teacher|st_[0-9a-z]{1,40})$")] = TEACHER
    threshold: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    """The student's answer stands if its score is at least this."""
    target_accuracy: Share | None = None
    """Of student and fallback together."""
    target_agreement: Share | None = None
    """With the teacher, of student and fallback together."""
    expected_coverage: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    """The share of the inputs on which the student's answer will stand, by its report: filled in with a target's
    threshold."""

    def asked(self, student_id: str) -> str:
        """Who answers in the place of this student, as the shelf names it: `st_…`, or `st_…/teacher`."""
        return teacher_of(student_id) if self.to == TEACHER else self.to

    @property
    def target(self) -> tuple[Literal["accuracy", "agreement"], float] | None:
        """What is to be reached; None where a threshold was given."""
        if self.target_accuracy is not None:
            return "accuracy", self.target_accuracy
        return None if self.target_agreement is None else ("agreement", self.target_agreement)

    @model_validator(mode="after")
    def _one_way_to_say_when(self) -> "Fallback":
        given = None if self.expected_coverage is not None else self.threshold
        if sum(one is not None for one in (given, self.target_accuracy, self.target_agreement)) != 1:
            raise PydanticCustomError(
                "one_threshold", "give one of threshold, target_accuracy and target_agreement, and no more", {}
            )
        return self


class Auto(Spec):
    """A canary or a shadow decides for itself: it is promoted when every bound holds, and ended when one is broken.

    Both are bounds at `confidence`, over the calls since the deployment was last changed.
    """

    min_inputs: int = Field(1000, ge=20)
    """Nothing is promoted before the candidate answered so many inputs."""
    min_agreement: float | None = Field(None, gt=0, lt=1, allow_inf_nan=False)
    """With the student that serves."""
    max_error_rate: Share | None = 0.01
    max_latency_ratio: float | None = Field(1.5, gt=0, allow_inf_nan=False)
    """p95 of the candidate by p95 of the student that serves."""
    promote: bool = True
    abort: bool = True
    confidence: float = Field(0.95, gt=0.5, lt=1, allow_inf_nan=False)


class Capture(Spec):
    """A log of inputs and answers, from which a dataset can be made."""

    sample: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    """The share of the calls that is kept."""
    max_rows: int = Field(10_000, ge=1, le=1_000_000)
    max_bytes: int = Field(100 * 1024**2, ge=1024)
    """Above either of them the oldest go."""
    days: float = Field(30.0, gt=0, le=3650, allow_inf_nan=False)
    redact: tuple[Pattern, ...] = Field((), max_length=50)
    """Regular expressions: what they match is kept as `[redacted]`. `email`, `phone` and `number` stand for theirs."""


class Traffic(Spec):
    """What happens to a call beside the answer of the student that serves."""

    canary: Canary | None = None
    shadow: Shadow | None = None
    fallback: Fallback | None = None
    auto: Auto | None = None
    capture: Capture | None = None

    @field_validator("auto")
    @classmethod
    def _auto_needs_a_candidate(cls, auto: Auto | None, info: ValidationInfo) -> Auto | None:
        # A canary or shadow that is itself refused is not in `data`, and one problem is enough.
        if auto is not None and info.data.get("canary", 0) is None and info.data.get("shadow", 0) is None:
            raise PydanticCustomError("auto_without_candidate", "auto needs a canary or a shadow to decide about", {})
        return auto


class DeploymentSpec(Traffic):
    """The body of `PUT /deployments/{name}`: the whole of what the deployment should be."""

    student: str = Field(max_length=64)
    gate: GateSpec | None = None
    """What the student must hold. Without one, that of the job which made it."""
    override: str | None = Field(None, min_length=1, max_length=1000)
    """Why a student whose gate does not hold may serve nevertheless. It is kept in the history."""
    cache: Annotated[None, not_yet("cache")] = None
