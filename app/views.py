"""What the API shows of each noun. Frozen; made of a row with `model_validate(row)`; times are UTC ISO 8601."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from models.tables import JobStatus

Json = dict[str, Any]


class View(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True, use_attribute_docstrings=True)


Item = TypeVar("Item", bound=View)


class Page(View, Generic[Item]):
    """Newest first; the next page starts `?after=` the id of the last item."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False


class Problem(View):
    """One thing that is wrong with a request; `pointer` is a JSON pointer into what was sent."""

    pointer: str
    message: str
    code: str


# --- datasets, teachers -----------------------------------------------------------------------------------------------


class Dataset(View):
    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    status: str
    source: str | None
    columns: list[Json]
    """`{"name", "type", "nulls", "distinct"?, "examples"}`

    The type is string, integer, float, boolean, list of strings, list of numbers, or answers, which are objects
    `{"text": [strings], "answer_start": [integers]}` as in SQuAD.
    """
    rows: int
    bytes: int
    sha256: str
    warnings: list[Any]
    created_at: datetime


class DatasetRows(View):
    """The first rows, as `{column: value}`."""

    object: Literal["list"] = "list"
    data: list[Json]
    has_more: bool


class Teacher(View):
    object: Literal["teacher"] = "teacher"
    id: str
    reference: str
    """What a job names it by: `teacher:tc_…`."""
    name: str
    sha256: str
    bytes: int
    config: Json
    created_at: datetime


# --- jobs -------------------------------------------------------------------------------------------------------------


class Job(View):
    object: Literal["job"] = "job"
    id: str
    name: str
    status: JobStatus
    phase: str | None
    """preflight, teach, distil, export, evaluate or publish."""
    waiting_reason: str | None
    progress: float
    """0 to 1."""
    eta_seconds: float | None
    attempt: int
    failures: int
    """Crashes in a row without checkpoint progress."""
    device: str
    priority: int
    worker: str | None
    error: Json | None
    """`{"code", "message", "hint"}` of a job that failed."""
    student_id: str | None
    spec: Json
    """As it was sent."""
    resolved_spec: Json
    """With every default filled in and no short form left: what runs."""
    estimates: Json | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int
    """Grows with every visible change; the ETag."""


class Validation(View):
    """What would happen with this spec. Nothing was created."""

    valid: bool
    problems: list[Problem]
    resolved_spec: Json | None
    estimates: Json | None
    estimates_reason: str | None
    """Why there are no estimates."""


class Event(View):
    object: Literal["event"] = "event"
    seq: int
    job_id: str
    attempt: int
    code: str
    message: str
    data: Json
    at: datetime


class Point(View):
    """One point of a series."""

    arm: str
    stage: int
    phase: int
    name: str
    step: int
    value: float


class JobPoint(Point):
    job_id: str


# --- students, deployments --------------------------------------------------------------------------------------------


class Student(View):
    object: Literal["student"] = "student"
    id: str
    name: str
    job_id: str
    hash: str
    """Over weights, config and tokenizer."""
    task: str | None
    labels: list[str]
    precision: str | None
    """The one that is served."""
    bytes: int
    """Of all files."""
    verdict: str | None
    """The report's first sentence."""
    gate_passed: bool | None
    deployments: list[str]
    """Names that point at it."""
    created_at: datetime


class File(View):
    path: str
    sha256: str
    size: int


class Deployment(View):
    object: Literal["deployment"] = "deployment"
    id: str
    name: str
    student: str
    gate: Json | None
    version: int
    """The ETag, for `If-Match`."""
    created_at: datetime
    updated_at: datetime


class DeploymentChange(View):
    object: Literal["deployment.change"] = "deployment.change"
    version: int
    student: str
    previous_student: str | None
    verb: str
    by: str
    reason: str
    at: datetime


# --- keys, workers, health --------------------------------------------------------------------------------------------


class Key(View):
    object: Literal["key"] = "key"
    id: str
    owner: str
    name: str
    scopes: list[str]
    public_id: str
    """The eight characters after `lk_`."""
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class NewKey(Key):
    key: str
    """The secret. It is shown this once."""


class Worker(View):
    object: Literal["worker"] = "worker"
    id: str
    host: str
    device: str
    device_name: str
    slots: int
    jobs: list[str]
    started_at: datetime
    seen_at: datetime
    seconds_since_seen: float
    alive: bool
    """It was heard of within the last lease."""


class Health(View):
    status: Literal["ok"] = "ok"


class Readiness(View):
    """`ready` and `degraded` answer 200, `unready` 503. Without its broker it is degraded: jobs start later."""

    status: Literal["ready", "degraded", "unready"]
    checks: Mapping[str, str]


# --- answers of /predict ----------------------------------------------------------------------------------------------


class Label(View):
    label: str
    score: float
    """A probability, or what `function_to_apply` made of the logit; of a regression the number."""


class Entity(View):
    entity_group: str
    score: float
    word: str
    start: int
    """In characters."""
    end: int
    """Exclusive."""


class Token(View):
    """Instead of an entity, with `aggregation_strategy` "none"."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


class Span(View):
    """A stretch of a context. An empty answer says that the context has none."""

    answer: str
    score: float
    start: int
    """In characters."""
    end: int
    """Exclusive."""
