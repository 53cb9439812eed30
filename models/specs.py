"""What may be asked: the job spec and its parts.

`parse_job` turns a JSON document into a `JobSpec`, or raises `Invalid` with every problem at once. `resolve` expands
its short forms into a `ResolvedSpec`, which has only `stages[].phases[]`, is stored with the job, and is what runs.
Everything is frozen, and a field that is not known is an error.

The contract is larger than this version. What is named in it but cannot run yet is declared with `Reserved` or
`not_yet` and refused with the code `not_available_yet`: never ignored in silence.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from models import references
from models.errors import Invalid, Problem

MAX_LENGTH = 8192
MAX_LAYERS = 96


def _refuse(what: str) -> NoReturn:
    raise PydanticCustomError("not_available_yet", "{what} is not available in this version", {"what": what})


def not_yet(what: str) -> BeforeValidator:
    """A field that the contract names and this version lacks: anything but null is refused."""

    def refuse(value: object) -> None:
        if value is not None:
            _refuse(what)

    return BeforeValidator(refuse)


def only(*available: str) -> BeforeValidator:
    """Of the values that the contract names, those that this version has."""

    def check(value: object) -> object:
        if isinstance(value, str) and value not in available:
            _refuse(f"{value!r}")
        return value

    return BeforeValidator(check)


class Spec(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Reserved(BaseModel):
    """A member of a union that the contract names and this version lacks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _not_yet(cls, value: Any) -> Any:
        kind = value.get("kind", value.get("preset")) if isinstance(value, Mapping) else value
        _refuse(f"{kind!r}")


def _reference(text: str) -> str:
    try:
        return str(references.parse(text))
    except Invalid as error:
        raise PydanticCustomError("bad_reference", "{message}", {"message": error.message}) from error


Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Rows = Annotated[int, Field(ge=1)]
Column = Annotated[str, Field(min_length=1, max_length=200)]


# --- tasks ------------------------------------------------------------------------------------------------------------


class TextClassification(Spec):
    """One label of two or more for a text."""

    kind: Literal["text-classification"]
    text: Column
    """The column with the text."""
    label: Column
    """The column with the label: text, integers or booleans; empty means that the row has none."""
    max_length: int = Field(128, ge=8, le=MAX_LENGTH)
    """Tokens of one text, special tokens included; longer texts are cut."""
    text_pair: Annotated[None, not_yet("text_pair")] = None
    multi_label: Annotated[
        Literal[False], BeforeValidator(lambda value: _refuse("multi_label") if value else False)
    ] = False


class TextRegression(Reserved):
    kind: Literal["text-regression"]


class TokenClassification(Reserved):
    kind: Literal["token-classification"]


class QuestionAnswering(Reserved):
    kind: Literal["question-answering"]


class TextGeneration(Reserved):
    kind: Literal["text-generation"]


class Text2Text(Reserved):
    kind: Literal["text2text-generation"]


Task = Annotated[
    TextClassification | TextRegression | TokenClassification | QuestionAnswering | TextGeneration | Text2Text,
    Field(discriminator="kind"),
]


# --- data -------------------------------------------------------------------------------------------------------------


class SplitByShare(Spec):
    """One dataset, split by a seeded, stratified draw; rows equal after normalisation never stand on both sides."""

    id: str = Field(max_length=64)
    validation: Share | Rows = 0.1
    """A fraction of the rows, or a number of rows."""
    test: Share | Rows = 0.2
    limit: Rows | None = None
    """Caps the training rows only."""


class SplitByColumn(Spec):
    """One dataset with a column that says `train`, `validation` or `test`."""

    id: str = Field(max_length=64)
    split: Column
    limit: Rows | None = None


class SplitByDataset(Spec):
    """Three datasets."""

    train: str = Field(max_length=64)
    validation: str = Field(max_length=64)
    test: str = Field(max_length=64)
    limit: Rows | None = None


def _dataset_form(value: Any) -> str:
    if isinstance(value, SplitByDataset) or (isinstance(value, Mapping) and "train" in value):
        return "<three>"
    if isinstance(value, SplitByColumn) or (isinstance(value, Mapping) and "split" in value):
        return "<column>"
    return "<share>"


DatasetSpec = Annotated[
    Annotated[SplitByShare, Tag("<share>")]
    | Annotated[SplitByColumn, Tag("<column>")]
    | Annotated[SplitByDataset, Tag("<three>")],
    Discriminator(_dataset_form),
]


# --- schedules --------------------------------------------------------------------------------------------------------


class Schedule(Spec):
    """How long and how fast a network is trained."""

    epochs: int = Field(3, ge=1, le=1000)
    learning_rate: float = Field(1e-4, gt=0, le=1, allow_inf_nan=False)
    batch_tokens: int = Field(1024, ge=16, le=1_048_576)
    """Tokens of one optimizer step, padding included: `longest text × texts` stays at or under it."""
    micro_batch_tokens: int | None = Field(None, ge=16)
    """Tokens that go through the network at once; null: the whole batch. Changes memory, not the result."""
    warmup: float = Field(0.06, ge=0, lt=1, allow_inf_nan=False)
    """Share of the steps in which the learning rate rises from 0."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(0.01, ge=0, le=1, allow_inf_nan=False)
    max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=False)
    patience: int | None = Field(None, ge=1)
    """Stop after so many epochs without a better validation score; null: run all epochs. The best epoch is kept."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` trains in bf16 where the hardware multiplies it fast."""


class FineTune(Schedule):
    """The teacher's own training on the labelled rows."""

    epochs: int = Field(2, ge=1, le=1000)
    learning_rate: float = Field(5e-5, gt=0, le=1, allow_inf_nan=False)


# --- teachers ---------------------------------------------------------------------------------------------------------


class LocalTeacher(Spec):
    """A checkpoint that the worker opens: safetensors only, never remote code."""

    kind: Literal["local"]
    model: str
    """A reference: hub:, package:, file:, student: or teacher:."""
    fine_tune: FineTune | None = None
    """Train it on the labelled rows first. Needed when the checkpoint has no head for this task."""
    weight: Weight = 1.0
    labels: dict[str, str] | None = None
    """Names of the checkpoint's own labels, such as {"LABEL_0": "negative"}."""
    secret: Annotated[None, not_yet("a teacher's secret")] = None

    _check = field_validator("model")(_reference)


class SelfTeacher(Reserved):
    kind: Literal["self"]


class RecordedTeacher(Reserved):
    kind: Literal["recorded"]


class ApiTeacher(Reserved):
    kind: Literal["api"]


Teacher = Annotated[LocalTeacher | SelfTeacher | RecordedTeacher | ApiTeacher, Field(discriminator="kind")]


# --- students ---------------------------------------------------------------------------------------------------------


class StudentFromTeacher(Spec):
    """The teacher's own layers, fewer of them, and a smaller vocabulary: the initialisation that works best."""

    kind: Literal["from_teacher"]
    layers: (
        Annotated[int, Field(ge=1, le=MAX_LAYERS)]
        | Annotated[list[Annotated[int, Field(ge=0, lt=MAX_LAYERS)]], Field(min_length=1)]
        | None
    ) = None
    """How many (chosen by the uniform layer map) or which ones, 0-based; null: all."""
    vocabulary: int | None = Field(None, ge=1)
    """Keep so many tokens: those that the training rows use most, and every special token and single character."""
    hidden_size: Annotated[None, not_yet("a narrower student")] = None
    heads: Annotated[None, not_yet("a narrower student")] = None
    intermediate_size: Annotated[None, not_yet("a narrower student")] = None

    @field_validator("layers")
    @classmethod
    def _increasing(cls, layers: int | list[int] | None) -> int | list[int] | None:
        if isinstance(layers, list) and any(after <= before for before, after in pairwise(layers)):
            raise PydanticCustomError("impossible_layers", "layers must be strictly increasing and without repetition")
        return layers


class PretrainedStudent(Spec):
    """Another checkpoint, with its own tokenizer."""

    kind: Literal["pretrained"]
    model: str

    _check = field_validator("model")(_reference)


class FreshStudent(Spec):
    """Random weights of a given shape, with the teacher's tokenizer (or a smaller vocabulary of it)."""

    kind: Literal["fresh"]
    architecture: Literal["bert"] = "bert"
    layers: int = Field(2, ge=1, le=MAX_LAYERS)
    hidden_size: int = Field(128, ge=8, le=8192)
    heads: int = Field(2, ge=1, le=128)
    intermediate_size: int = Field(512, ge=8, le=65536)
    vocabulary: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % self.heads:
            raise PydanticCustomError(
                "impossible_student",
                "hidden_size {hidden} is not a multiple of heads {heads}",
                {"hidden": self.hidden_size, "heads": self.heads},
            )
        return self


Student = Annotated[StudentFromTeacher | PretrainedStudent | FreshStudent, Field(discriminator="kind")]


# --- objectives and phases --------------------------------------------------------------------------------------------


class SoftTargets(Spec):
    """`τ²·KL(teacher ‖ student)` at temperature τ (Hinton 2015, arXiv:1503.02531)."""

    kind: Literal["soft_targets"]
    temperature: float = Field(2.0, gt=0, le=1000, allow_inf_nan=False)
    weight: Weight = 1.0
    divergence: Annotated[Literal["forward_kl", "reverse_kl", "jsd"], only("forward_kl")] = "forward_kl"


class HardLabels(Spec):
    """Cross-entropy with the true labels; rows without one are left out of this term alone."""

    kind: Literal["hard_labels"]
    weight: Weight = 1.0


class LogitDistance(Reserved):
    kind: Literal["logit_distance"]


class HiddenStates(Reserved):
    kind: Literal["hidden_states"]


class AttentionTransfer(Reserved):
    kind: Literal["attention_transfer"]


class AttentionScores(Reserved):
    kind: Literal["attention_scores"]


class Embeddings(Reserved):
    kind: Literal["embeddings"]


class Relations(Reserved):
    kind: Literal["relations"]


Objective = Annotated[
    SoftTargets
    | HardLabels
    | LogitDistance
    | HiddenStates
    | AttentionTransfer
    | AttentionScores
    | Embeddings
    | Relations,
    Field(discriminator="kind"),
]


def _some_weight(objectives: list[Any]) -> list[Any]:
    if not any(objective.weight for objective in objectives):
        raise PydanticCustomError("no_weight", "at least one objective must have a weight above 0")
    return objectives


Objectives = Annotated[list[Objective], Field(min_length=1, max_length=16), AfterValidator(_some_weight)]


class Phase(Spec):
    """One stretch of training with one set of objectives."""

    objectives: Objectives
    schedule: Schedule = Schedule()


class Hinton(Spec):
    """The classic pair: `α·τ²·KL + (1-α)·CE`."""

    preset: Literal["hinton"]
    temperature: float = Field(2.0, gt=0, le=1000, allow_inf_nan=False)
    alpha: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)

    def objectives(self) -> list[SoftTargets | HardLabels]:
        return [
            SoftTargets(kind="soft_targets", temperature=self.temperature, weight=self.alpha),
            HardLabels(kind="hard_labels", weight=1 - self.alpha),
        ]


class LaterPreset(Reserved):
    preset: Literal["fitnets", "attention-transfer", "tinybert", "minilm"]


def _preset(value: Any) -> Any:
    return {"preset": value} if isinstance(value, str) else value


Method = Annotated[Hinton | LaterPreset, Field(discriminator="preset"), BeforeValidator(_preset)]


class Stage(Spec):
    """One teacher-to-student step: `phases`, or the short form of one, `method` or `objectives` with `schedule`."""

    student: Student
    phases: Annotated[list[Phase], Field(min_length=1, max_length=8)] | None = None
    method: Method | None = None
    objectives: Objectives | None = None
    schedule: Schedule | None = None
    teacher: Annotated[Literal["previous", "original"], only("previous")] = "previous"


# --- the rest of a job ------------------------------------------------------------------------------------------------


class Export(Spec):
    precision: Literal["auto", "fp32", "int8"] = "auto"
    """`auto` serves int8 if it agrees with fp32 on at least 98.5 % of the test rows and its p50 is lower."""


class GateSpec(Spec):
    """What must hold, as a bound at a confidence, before a student may serve."""

    max_drop: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    """Upper end of the one-sided paired interval of (teacher − student) accuracy, at most this."""
    min_agreement: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Clopper-Pearson lower bound of the agreement with the teacher, at least this."""
    confidence: float = Field(0.95, gt=0.5, lt=1, allow_inf_nan=False)
    min_metric: Annotated[None, not_yet("the gate min_metric")] = None
    max_latency_ms: Annotated[None, not_yet("the gate max_latency_ms")] = None
    max_bytes: Annotated[None, not_yet("the gate max_bytes")] = None


DeploymentName = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]


class Promote(Spec):
    """Move a deployment to the student when the job succeeds and its gate holds."""

    deployment: DeploymentName
    gate: GateSpec = GateSpec()


class Resources(Spec):
    device: Literal["auto", "cpu", "gpu"] = "auto"
    gpus: int = Field(1, ge=1, le=64)


class _Common(Spec):
    name: str = Field("", max_length=200)
    task: Task
    dataset: DatasetSpec
    teachers: Annotated[list[Teacher], Field(min_length=1, max_length=16)]
    control: bool = True
    """Train the same student without the teacher too, and compare."""
    export: Export = Export()
    promote: Promote | None = None
    resources: Resources = Resources()
    priority: int = Field(0, ge=-100, le=100)
    """Of the jobs that wait, higher ones go first."""
    max_seconds: int | None = Field(None, ge=1)
    """The job fails with the code `time_limit` after so much training time."""
    seed: int = Field(0, ge=0, lt=2**31)
    combine: Annotated[None, not_yet("an ensemble of teachers")] = None
    webhook: Annotated[None, not_yet("webhook")] = None


class JobSpec(_Common):
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


class ResolvedSpec(_Common):
    """The spec with every default filled in and no short form left: what is stored and what runs."""

    stages: Annotated[list[ResolvedStage], Field(min_length=1)]


# --- from a document to a spec ----------------------------------------------------------------------------------------


def parse_job(document: Any) -> JobSpec:
    """The job spec of a JSON document. Raises `Invalid` with every problem that can be seen without a database."""
    try:
        spec = JobSpec.model_validate(document)
    except ValidationError as error:
        raise Invalid.of(problems(error, document)) from error
    wrong = [*_short_form_problems(spec), *_limits_of_this_version(spec)]
    if wrong:
        raise Invalid.of(wrong)
    return spec


def resolve(spec: JobSpec) -> ResolvedSpec:
    """`spec` with its short forms expanded. The same spec always resolves to the same document."""
    if spec.stages is not None:
        stages = spec.stages
    else:
        student = spec.student or StudentFromTeacher(kind="from_teacher")
        stages = [
            Stage(
                student=student,
                phases=spec.phases,
                method=spec.method,
                objectives=spec.objectives,
                schedule=spec.schedule,
            )
        ]
    common = {name: getattr(spec, name) for name in _Common.model_fields}
    return ResolvedSpec(**common, stages=[_resolve_stage(stage) for stage in stages])


def _resolve_stage(stage: Stage) -> ResolvedStage:
    if stage.phases is not None:
        return ResolvedStage(student=stage.student, phases=stage.phases, teacher=stage.teacher)
    objectives: Sequence[Any]
    if stage.objectives is not None:
        objectives = stage.objectives
    else:
        method = stage.method if isinstance(stage.method, Hinton) else Hinton(preset="hinton")
        objectives = method.objectives()
    phase = Phase(objectives=list(objectives), schedule=stage.schedule or Schedule())
    return ResolvedStage(student=stage.student, phases=[phase], teacher=stage.teacher)


def _short_form_problems(spec: JobSpec) -> list[Problem]:
    found = []
    if spec.stages is not None:
        found += [
            Problem(f"/{name}", f"give {name} inside stages, or leave stages out", "ambiguous")
            for name in ("student", "phases", "method", "objectives", "schedule")
            if getattr(spec, name) is not None
        ]
    elif spec.student is None:
        found.append(Problem("/student", "say which student you want: student (one stage) or stages", "missing"))
    parts: list[tuple[str, JobSpec | Stage]] = [("", spec)]
    parts += [(f"/stages/{at}", stage) for at, stage in enumerate(spec.stages or ())]
    for at, part in parts:
        ways = [name for name in ("phases", "method", "objectives") if getattr(part, name) is not None]
        found += [
            Problem(f"{at}/{name}", f"{name} and {ways[0]} say the same thing twice", "ambiguous") for name in ways[1:]
        ]
        if part.phases is not None and part.schedule is not None:
            found.append(Problem(f"{at}/schedule", "each phase has its own schedule", "ambiguous"))
    return found


def _limits_of_this_version(spec: JobSpec) -> list[Problem]:
    later = "not_available_yet"
    found = []
    if len(spec.teachers) > 1:
        found.append(Problem("/teachers/1", "an ensemble of teachers is not available in this version", later))
    if spec.stages is not None and len(spec.stages) > 1:
        found.append(Problem("/stages/1", "a chain of stages is not available in this version", later))
    if spec.resources.gpus > 1:
        found.append(Problem("/resources/gpus", "one job on several GPUs is not available in this version", later))
    return found


def problems(error: ValidationError, document: Any) -> list[Problem]:
    """pydantic's errors with JSON pointers into the document as the caller wrote it."""
    return [_problem(detail, document) for detail in error.errors(include_url=False, include_context=False)]


_CODES: Mapping[str, str] = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "union_tag_invalid": "unknown_kind",
    "union_tag_not_found": "missing",
}


def _problem(detail: ErrorDetails, document: Any) -> Problem:
    kind = detail["type"]
    own = kind in {"not_available_yet", "bad_reference", "impossible_layers", "impossible_student", "no_weight"}
    pointer = _pointer(detail["loc"], document, absent=kind == "missing")
    if kind == "union_tag_not_found" and "discriminator" in detail["msg"]:
        pointer, message = f"{pointer}/{_discriminator(detail['msg'])}", "is required"
    else:
        message = {"missing": "is required", "extra_forbidden": "is not a field of this object"}.get(
            kind, detail["msg"]
        )
    return Problem(pointer, message, kind if own else _CODES.get(kind, "invalid"))


def _discriminator(message: str) -> str:
    return message.split("'")[1] if "'" in message else "kind"


def _pointer(loc: Sequence[int | str], document: Any, *, absent: bool) -> str:
    """`loc` without the names of union members, which pydantic puts in and the caller never wrote."""
    parts: list[int | str] = []
    here = document
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        named = (here.get("kind"), here.get("preset")) if isinstance(here, Mapping) else ()
        inside = part in here and part not in named if isinstance(here, Mapping) else False
        if inside or (isinstance(part, int) and isinstance(here, list) and part < len(here)):
            here = here[part]
        elif not (last and absent):
            continue
        parts.append(part)
    escape: Callable[[int | str], str] = lambda part: str(part).replace("~", "~0").replace("/", "~1")  # noqa: E731
    return "".join(f"/{escape(part)}" for part in parts)
