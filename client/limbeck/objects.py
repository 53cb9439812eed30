"""What the service answers, as frozen dataclasses. Times are aware and UTC, sizes are in bytes, durations in seconds.

Each has `raw`, the JSON object as it came. A field that this version does not know is in `raw` and nowhere else, so
that an older client can talk to a newer service.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from limbeck.errors import Problem, UnexpectedAnswer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Json = dict[str, Any]
Answer = TypeVar("Answer", bound="DataclassInstance")
Item = TypeVar("Item")

JobStatus = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
ENDED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})


def read(kind: type[Answer], document: Any) -> Answer:
    """The object of a JSON document. Raises `UnexpectedAnswer` where a field that it must have is missing."""
    if not isinstance(document, Mapping):
        raise UnexpectedAnswer(f"the service did not answer with a JSON object for {kind.__name__}")
    values: Json = {}
    for wanted in fields(kind):
        if wanted.name == "raw":
            values["raw"] = dict(document)
        elif wanted.name in document:
            values[wanted.name] = _value(wanted.type, document[wanted.name])
        elif wanted.default is MISSING and wanted.default_factory is MISSING:
            raise UnexpectedAnswer(
                f"the service's answer for {kind.__name__} has no {wanted.name!r}",
                hint="are the client and the service of the same version?",
            )
    return kind(**values)


def _value(kind: object, value: Any) -> Any:
    if kind in (datetime, datetime | None) and isinstance(value, str):
        return datetime.fromisoformat(value)
    if kind == list[Problem] and isinstance(value, list):
        return [problem(item) for item in value]
    if kind == JobError | None and isinstance(value, Mapping):
        return read(JobError, value)
    return value


def problem(document: Mapping[str, Any]) -> Problem:
    return Problem(
        pointer=str(document.get("pointer", "")),
        message=str(document.get("message", "")),
        code=str(document.get("code", "invalid")),
    )


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some of a list. Iterate it, or ask for the next ones with `after=` the id of the last."""

    data: list[Item]
    has_more: bool = False
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> Item:
        return self.data[position]


# --- datasets, teachers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    id: str
    name: str
    status: str
    rows: int
    bytes: int
    columns: list[Json]
    created_at: datetime
    sha256: str = ""
    source: str | None = None
    warnings: list[Any] = field(default_factory=list)
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that was uploaded; a job names it by `reference`."""

    id: str
    name: str
    reference: str
    bytes: int
    created_at: datetime
    sha256: str = ""
    config: Json = field(default_factory=dict, repr=False)
    raw: Json = field(default_factory=dict, repr=False, compare=False)


# --- jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobError:
    """Why a job failed."""

    code: str
    message: str
    hint: str | None = None
    pointer: str | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Job:
    id: str
    name: str
    status: JobStatus
    created_at: datetime
    phase: str | None = None
    """preflight, teach, distil, export, evaluate or publish."""
    progress: float = 0.0
    eta_seconds: float | None = None
    waiting_reason: str | None = None
    student_id: str | None = None
    error: JobError | None = None
    attempt: int = 0
    failures: int = 0
    device: str = ""
    priority: int = 0
    worker: str | None = None
    version: int = 0
    """Grows with every visible change."""
    estimates: Json | None = field(default=None, repr=False)
    spec: Json = field(default_factory=dict, repr=False)
    resolved_spec: Json = field(default_factory=dict, repr=False)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def succeeded(self) -> bool:
        return self.status == "succeeded"


@dataclass(frozen=True)
class Validation:
    """What would happen with a spec. `valid` False: `problems` says why, all at once."""

    valid: bool
    problems: list[Problem] = field(default_factory=list)
    resolved_spec: Json | None = field(default=None, repr=False)
    estimates: Json | None = None
    estimates_reason: str | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Event:
    seq: int
    code: str
    message: str
    at: datetime
    job_id: str = ""
    attempt: int = 0
    data: Json = field(default_factory=dict)
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Point:
    """One point of a series, which is (arm, stage, phase, name)."""

    arm: str
    stage: int
    phase: int
    name: str
    step: int
    value: float
    raw: Json = field(default_factory=dict, repr=False, compare=False)


# --- students, deployments --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Student:
    id: str
    name: str
    job_id: str
    hash: str
    created_at: datetime
    task: str | None = None
    labels: list[str] = field(default_factory=list)
    precision: str | None = None
    bytes: int = 0
    verdict: str | None = None
    gate_passed: bool | None = None
    deployments: list[str] = field(default_factory=list)
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class File:
    path: str
    sha256: str
    size: int
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Deployment:
    id: str
    name: str
    student: str
    version: int
    created_at: datetime
    updated_at: datetime
    gate: Json | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class DeploymentChange:
    version: int
    student: str
    verb: str
    by: str
    at: datetime
    previous_student: str | None = None
    reason: str = ""
    raw: Json = field(default_factory=dict, repr=False, compare=False)


# --- keys, workers, readiness -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    id: str
    name: str
    owner: str
    scopes: list[str]
    public_id: str
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    key: str | None = field(default=None, repr=False)
    """The secret: only in the answer to `keys.create`, and never again."""
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Worker:
    id: str
    host: str
    device: str
    slots: int
    started_at: datetime
    seen_at: datetime
    device_name: str = ""
    jobs: list[str] = field(default_factory=list)
    seconds_since_seen: float = 0.0
    alive: bool = True
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Readiness:
    status: str
    checks: dict[str, str] = field(default_factory=dict)
    raw: Json = field(default_factory=dict, repr=False, compare=False)
