"""What the service answers, as frozen dataclasses. Times are aware and UTC, sizes are in bytes, durations in seconds.

Each has `raw`, the JSON object as it came. A field that this version does not know is in `raw` and nowhere else, so
that an older client can talk to a newer service.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from limbeck.errors import Problem, UnexpectedAnswer
from limbeck.notebooks import brief, card, lines, table, told

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
    if kind == list[FileCheck] and isinstance(value, list):
        return [read(FileCheck, item) for item in value]
    if kind == JobError | None and isinstance(value, Mapping):
        return read(JobError, value)
    if kind == list[TrafficArm] and isinstance(value, list):
        return [read(TrafficArm, item) for item in value]
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

    def __repr__(self) -> str:
        return f"{self._caption()}:{lines(self.data)}" if self.data else self._caption()

    def _repr_html_(self) -> str:
        rows = [told(item) if is_dataclass(item) and not isinstance(item, type) else item for item in self.data]
        shown = [dict(row) if isinstance(row, Mapping) else {"": row} for row in rows]
        return table(self._caption(), shown)

    def _caption(self) -> str:
        return f"Page of {len(self.data)}{', more follow' if self.has_more else ''}"


class Report(Json):
    """A student's report: a dictionary, as the documentation describes it, that shows itself as a table of its arms."""

    def __repr__(self) -> str:
        return f"Report: {self.get('verdict', 'no verdict')}{lines(self._rows())}"

    def _repr_html_(self) -> str:
        return table(str(self.get("verdict", "Report")), self._rows())

    def _rows(self) -> list[Json]:
        """Of each arm the figures that are one number or word."""
        arms = self.get("arms")
        return [
            {"arm": arm, **{name: value for name, value in figures.items() if isinstance(value, int | float | str)}}
            for arm, figures in (arms.items() if isinstance(arms, Mapping) else ())
            if isinstance(figures, Mapping)
        ]


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

    __repr__ = brief
    _repr_html_ = card


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

    __repr__ = brief
    _repr_html_ = card


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
    rerun_of: str | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    __repr__ = brief
    _repr_html_ = card

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

    __repr__ = brief
    _repr_html_ = card


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
    job_id: str = ""
    """Which job's it is, where several are compared."""
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

    __repr__ = brief
    _repr_html_ = card


@dataclass(frozen=True)
class Disagreement:
    """A test row on which student and teacher differ. What is said and true has the shape of the task."""

    row: int
    """Its place among all of the student's disagreements, from 0."""
    input: Any
    truth: Any
    """None: the row has no label."""
    teacher: Any
    student: Any
    right: Literal["teacher", "student", "both", "neither"] | None = None
    """Who made no mistake; None where nobody knows, or answers are numbers."""
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Economics:
    """A month of a student against a month of its teacher's API. Amounts are in the currency of the prices given."""

    student: str
    terms: Json
    """What was reckoned with, defaults included."""
    teacher_cost_per_month: float
    student_cost_per_month: float
    saving_per_month: float
    hosts: int
    verdict: str
    """The same in one sentence."""
    capacity_calls_per_month: float | None = None
    """Of one host."""
    utilisation: float | None = None
    break_even_calls_per_month: float | None = None
    """From this volume on the student pays; None: at none."""
    break_even_months: float | None = None
    """Until the training is paid for; None: never."""
    measured_on: Json | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    __repr__ = brief
    _repr_html_ = card


@dataclass(frozen=True)
class File:
    path: str
    sha256: str
    size: int
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class FileCheck:
    """A file of a student as it was found; `problem` says what is wrong with one that is not `ok`."""

    path: str
    ok: bool
    sha256: str | None = None
    problem: str | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Verification:
    """Whether a student is the one that was published. `found_hash` is over the files that were found."""

    ok: bool
    hash: str
    found_hash: str
    files: list[FileCheck]
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    __repr__ = brief
    _repr_html_ = card


@dataclass(frozen=True)
class Deployment:
    id: str
    name: str
    student: str
    version: int
    created_at: datetime
    updated_at: datetime
    gate: Json | None = None
    canary: Json | None = None
    shadow: Json | None = None
    fallback: Json | None = None
    auto: Json | None = None
    capture: Json | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    __repr__ = brief
    _repr_html_ = card


@dataclass(frozen=True)
class DeploymentChange:
    version: int
    student: str
    verb: str
    by: str
    at: datetime
    previous_student: str | None = None
    reason: str = ""
    gate: Json | None = None
    traffic: Json = field(default_factory=dict)
    """The canary, shadow, fallback, auto and capture that there were after it."""
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class TrafficArm:
    """What one arm (stable, canary, shadow or fallback) has seen. Rates are None where there is nothing to count."""

    arm: str
    student: str
    calls: int
    inputs: int
    errors: int
    error_rate: float | None = None
    error_rate_lower_bound: float | None = None
    error_rate_upper_bound: float | None = None
    compared: int = 0
    """Inputs that the stable student answered too."""
    agreed: int = 0
    agreement: float | None = None
    agreement_lower_bound: float | None = None
    agreement_upper_bound: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class DeploymentTraffic:
    name: str
    version: int
    since: datetime
    """When the deployment came to this version: what is counted came after it."""
    arms: list[TrafficArm]
    decision: Json | None = None
    """`{"verdict", "reason"}` of `auto`."""
    confidence: float = 0.95
    """Of each bound."""
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    __repr__ = brief
    _repr_html_ = card


@dataclass(frozen=True)
class Prediction:
    """An input with its answer that a deployment's capture kept."""

    id: str
    student: str
    arm: str
    input: Any
    answer: Any
    created_at: datetime
    label: Any = None
    """The true answer, where somebody has told it."""
    labelled_at: datetime | None = None
    expires_at: datetime | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)


# --- secrets, webhooks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Secret:
    """That there is one; its value never comes back."""

    name: str
    created_at: datetime
    updated_at: datetime
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Webhook:
    """An address that is told of events."""

    id: str
    url: str
    events: list[str]
    created_at: datetime
    secret: str | None = None
    """The name of the secret that signs."""
    job_id: str | None = None
    """Only this job's events."""
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    signing_secret: str | None = field(default=None, repr=False)
    """What signs: only in the answer to `webhooks.create`, and never again."""
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    __repr__ = brief
    _repr_html_ = card


@dataclass(frozen=True)
class Delivery:
    """One event for one webhook, and what became of it."""

    id: str
    webhook_id: str
    type: str
    """The event, such as job.succeeded."""
    status: str
    """pending, delivered or failed."""
    created_at: datetime
    attempts: int = 0
    last_status_code: int | None = None
    last_error: str | None = None
    attempted_at: datetime | None = None
    ended_at: datetime | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    __repr__ = brief
    _repr_html_ = card


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

    __repr__ = brief
    _repr_html_ = card


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

    __repr__ = brief
    _repr_html_ = card


@dataclass(frozen=True)
class Readiness:
    status: str
    checks: dict[str, str] = field(default_factory=dict)
    raw: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class SignInLink:
    """Opens the service's pages in one browser, once."""

    path: str = field(repr=False)
    """Below the service's address."""
    expires_at: datetime
    raw: Json = field(default_factory=dict, repr=False, compare=False)
