"""Who teaches."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from models.specs.base import Column, Reserved, Spec, Weight, not_yet, reference
from models.specs.schedules import FineTune

LabelNames = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=2, max_length=1000)]


class LocalTeacher(Spec):
    """A checkpoint that the worker opens: safetensors only, never remote code."""

    kind: Literal["local"]
    model: str
    """A reference: hub:, package:, file:, student: or teacher:."""
    fine_tune: FineTune | None = None
    """Train it on the labelled rows first. Needed when the checkpoint has no head for this task."""
    weight: Weight = 1.0
    """Its share in an ensemble, in proportion to the others' weights."""
    labels: dict[str, str] | None = None
    """Names of the checkpoint's own labels, such as {"LABEL_0": "negative"}."""
    secret: Annotated[None, not_yet("a teacher's secret")] = None
    at_chance: bool = False
    """Go on although the teacher is no better than chance on the validation rows; the report says so."""

    _check = field_validator("model")(reference)


class SelfTeacher(Spec):
    """The student's own past.

    By generations (born-again networks, arXiv:1805.04770): the student is first trained on the labels alone, then each
    generation teaches the next of the same shape. Or, with `ema`, a moving average of its own weights while it trains
    (mean teacher, arXiv:1703.01780).
    """

    kind: Literal["self"]
    generations: int = Field(1, ge=1, le=8)
    """How many are taught; the untaught first one is not counted."""
    ema: float | None = Field(None, gt=0, lt=1, allow_inf_nan=False)
    """The moving average's decay for each step, such as 0.999; null: generations."""
    model: str | None = None
    """What a student of the kind from_teacher is cut from; a pretrained student needs none."""

    _check = field_validator("model")(lambda text: text if text is None else reference(text))

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.ema is not None and self.generations > 1:
            raise PydanticCustomError("ambiguous", "give ema or generations: an average has no generations")
        return self


class RecordedTeacher(Spec):
    """Answers that stand in the dataset: a list of numbers in each row, one for each label. For text classification."""

    kind: Literal["recorded"]
    logits: Column | None = None
    """The column with raw logits."""
    probabilities: Column | None = None
    """The column with probabilities."""
    labels: LabelNames | None = None
    """The labels that the numbers stand for, in order; null: the data's labels, sorted."""
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        if (self.logits is None) == (self.probabilities is None):
            raise PydanticCustomError("one_column", "name one column: logits or probabilities")
        return self

    @property
    def column(self) -> str:
        return self.logits or self.probabilities or ""


class ApiTeacher(Reserved):
    kind: Literal["api"]


Teacher = Annotated[LocalTeacher | SelfTeacher | RecordedTeacher | ApiTeacher, Field(discriminator="kind")]
