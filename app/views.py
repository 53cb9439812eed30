"""What the API shows of each noun. Frozen; made of a row with `model_validate(row)`; times are UTC ISO 8601."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from models.tables import DeliveryStatus, JobStatus

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
    rerun_of: str | None
    """The job that it repeats."""
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


class Disagreement(View):
    """A test row on which student and teacher differ; what is said and true has the shape of the task."""

    object: Literal["disagreement"] = "disagreement"
    row: int
    """Its place among all of the student's disagreements, from 0: what `after` takes."""
    input: Any
    truth: Any
    """None: the row has no label."""
    teacher: Any
    student: Any
    right: Literal["teacher", "student", "both", "neither"] | None
    """Who made no mistake; null where nobody knows, or answers are numbers."""


class Terms(View):
    """What was reckoned with. Amounts are in one currency, whichever it is."""

    price_per_call: float
    calls_per_month: float
    host_cost_per_month: float
    training_cost: float
    fallback_coverage: float
    texts_per_second: float | None


class Economics(View):
    object: Literal["student.economics"] = "student.economics"
    student: str
    terms: Terms
    teacher_cost_per_month: float
    student_cost_per_month: float
    """Hosts, and the calls that fall back to the teacher."""
    saving_per_month: float
    hosts: int
    capacity_calls_per_month: float | None
    """Of one host; null where its speed was not measured."""
    utilisation: float | None
    """Of the hosts together, 0 to 1."""
    break_even_calls_per_month: float | None
    """From this volume on the student pays; null: at none."""
    break_even_months: float | None
    """Until the training is paid for; null: never."""
    measured_on: Json | None
    """The host on which the report measured the speed."""
    verdict: str
    """The same in one sentence."""


class File(View):
    path: str
    sha256: str
    size: int


class FileCheck(View):
    path: str
    sha256: str | None
    """As it was found just now."""
    ok: bool
    problem: str | None


class Verification(View):
    """Every file read again from the store and compared with what was published."""

    object: Literal["verification"] = "verification"
    ok: bool
    hash: str
    """As published."""
    found_hash: str
    """Over the files that were found."""
    files: list[FileCheck]


class Deployment(View):
    object: Literal["deployment"] = "deployment"
    id: str
    name: str
    student: str
    gate: Json | None
    """What a student must hold before it serves here."""
    canary: Json | None
    shadow: Json | None
    fallback: Json | None
    """Its `threshold` is there also where a target was given, and `expected_coverage` then says what it comes to."""
    auto: Json | None
    capture: Json | None
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
    """put, override, promote, abort or rollback."""
    by: str
    """The key or the job that moved it, or `auto`."""
    reason: str
    """What the gate decided on; of an override why, and then what did not hold."""
    gate: Json | None
    traffic: Json
    """The canary, shadow, fallback, auto and capture that there were. Both as they were after the change."""
    at: datetime


class TrafficArm(View):
    """What one arm has seen. Rates and bounds are null where there is nothing to make them of."""

    arm: Literal["stable", "canary", "shadow", "fallback"]
    student: str
    calls: int
    inputs: int
    """Of a shadow, which answers no caller, those compared."""
    errors: int
    """Calls that failed through no fault of the caller."""
    error_rate: float | None
    error_rate_lower_bound: float | None
    error_rate_upper_bound: float | None
    compared: int
    """Inputs that the stable student answered too."""
    agreed: int
    agreement: float | None
    agreement_lower_bound: float | None
    agreement_upper_bound: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class TrafficDecision(View):
    verdict: Literal["promote", "abort", "wait"]
    reason: str


class DeploymentTraffic(View):
    object: Literal["deployment.traffic"] = "deployment.traffic"
    name: str
    version: int
    since: datetime
    """When the deployment came to this version: what is counted came after it."""
    confidence: float
    """Of each bound, over all looks at it: `auto.confidence`, or 0.95."""
    arms: list[TrafficArm]
    decision: TrafficDecision | None
    """What `auto` would do now, or has done to this version; null where it does not decide."""


class Prediction(View):
    """An input with its answer that a deployment's capture kept, redacted."""

    object: Literal["prediction"] = "prediction"
    id: str
    student: str
    """Who answered."""
    arm: str
    """stable, canary, shadow or fallback."""
    input: Any
    answer: Any
    label: Any | None
    """The true answer, where somebody has told it."""
    bytes: int
    """Of input and answer."""
    labelled_at: datetime | None
    created_at: datetime
    expires_at: datetime


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


# --- secrets, webhooks ------------------------------------------------------------------------------------------------


class Secret(View):
    """Its value is in no answer."""

    object: Literal["secret"] = "secret"
    name: str
    created_at: datetime
    updated_at: datetime


class Webhook(View):
    object: Literal["webhook"] = "webhook"
    id: str
    url: str
    events: list[str]
    secret: str | None
    """The name of the owner's secret that signs; null: one that was made for it."""
    job_id: str | None
    """The one job that it hears of, as that job's spec asks; null: all of its owner's."""
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime


class NewWebhook(Webhook):
    signing_secret: str | None
    """`whsec_…`, shown this once; null where the owner's own secret signs."""


class Delivery(View):
    """One event for one webhook, and what became of it."""

    object: Literal["delivery"] = "delivery"
    id: str
    """Sent as `webhook-id` with every attempt."""
    webhook_id: str
    type: str
    status: DeliveryStatus
    attempts: int
    last_status_code: int | None
    """Of the last attempt; null where no answer came."""
    last_error: str | None
    next_attempt_at: datetime | None
    """Null: none will be made."""
    payload: Json
    created_at: datetime
    attempted_at: datetime | None
    ended_at: datetime | None


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
