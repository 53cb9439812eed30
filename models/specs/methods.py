"""Phases, and the named methods that stand for them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from models.specs.base import Spec, Weight
from models.specs.objectives import (
    AttentionScores,
    AttentionTransfer,
    Embeddings,
    HardLabels,
    HiddenStates,
    Layer,
    LogitDistance,
    Objective,
    Objectives,
    Relations,
    SoftTargets,
)
from models.specs.schedules import Schedule
from models.specs.tasks import Task, TextRegression

Temperature = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Alpha = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Phase(Spec):
    """One stretch of training with one set of objectives."""

    objectives: Objectives
    schedule: Schedule = Schedule()


class _Classic(Spec):
    """`α·τ²·KL + (1-α)·CE`; for a task whose answer is a number `α·½(z_S − z_T)² + (1-α)·(z_S − y)²`."""

    temperature: Temperature = 2.0
    alpha: Alpha = 0.5

    def outputs(self, task: Task) -> list[Objective]:
        taught: Objective
        if isinstance(task, TextRegression):
            taught = LogitDistance(kind="logit_distance", weight=self.alpha)
        else:
            taught = SoftTargets(kind="soft_targets", temperature=self.temperature, weight=self.alpha)
        return [taught, HardLabels(kind="hard_labels", weight=1 - self.alpha)]


class _TwoPhases(_Classic):
    first: Schedule | None = None
    """The schedule of the first phase; null: that of the second."""

    def two(self, features: list[Objective], task: Task, schedule: Schedule) -> list[Phase]:
        return [
            Phase(objectives=features, schedule=self.first or schedule),
            Phase(objectives=self.outputs(task), schedule=schedule),
        ]


class Hinton(_Classic):
    """Soft targets and hard labels (arXiv:1503.02531)."""

    preset: Literal["hinton"]

    def phases(self, task: Task, schedule: Schedule) -> list[Phase]:
        return [Phase(objectives=self.outputs(task), schedule=schedule)]


class FitNets(_TwoPhases):
    """Hints: hidden states in the middle of both networks, then `hinton` (arXiv:1412.6550)."""

    preset: Literal["fitnets"]
    layers: Annotated[list[tuple[Layer, Layer]], Field(min_length=1, max_length=1)] | None = None
    """One pair (student state, teacher state); null: the middle ones."""

    def phases(self, task: Task, schedule: Schedule) -> list[Phase]:
        hint = HiddenStates(kind="hidden_states", layers=self.layers or "middle")
        return self.two([hint], task, schedule)


class WithAttentionTransfer(_Classic):
    """`hinton` with attention transfer at the mapped layers (arXiv:1612.03928)."""

    preset: Literal["attention-transfer"]
    weight: Weight = 10.0
    """Of the attention transfer; the classic pair weighs 1."""

    def phases(self, task: Task, schedule: Schedule) -> list[Phase]:
        transfer = AttentionTransfer(kind="attention_transfer", weight=self.weight)
        return [Phase(objectives=[*self.outputs(task), transfer], schedule=schedule)]


class TinyBERT(_TwoPhases):
    """Embeddings, hidden states and attention scores, then soft targets alone (arXiv:1909.10351)."""

    preset: Literal["tinybert"]
    temperature: Temperature = 1.0
    alpha: Alpha = 1.0
    heads: Literal["same", "averaged"] = "same"
    """`averaged` for a student with another number of heads."""

    def phases(self, task: Task, schedule: Schedule) -> list[Phase]:
        features: list[Objective] = [
            Embeddings(kind="embeddings"),
            HiddenStates(kind="hidden_states"),
            AttentionScores(kind="attention_scores", heads=self.heads),
        ]
        return self.two(features, task, schedule)

    def outputs(self, task: Task) -> list[Objective]:
        return [one for one in super().outputs(task) if one.weight]


class MiniLM(_TwoPhases):
    """Relations of queries, keys and values of one layer, then `hinton` (arXiv:2012.15828)."""

    preset: Literal["minilm"]
    heads: int | None = Field(None, ge=1, le=512)
    """Relation heads."""
    teacher_layer: Layer | None = None
    """0-based; null: the last."""

    def phases(self, task: Task, schedule: Schedule) -> list[Phase]:
        relations = Relations(kind="relations", heads=self.heads, teacher_layer=self.teacher_layer)
        return self.two([relations], task, schedule)


def _preset(value: Any) -> Any:
    return {"preset": value} if isinstance(value, str) else value


Method = Annotated[
    Hinton | FitNets | WithAttentionTransfer | TinyBERT | MiniLM,
    Field(discriminator="preset"),
    BeforeValidator(_preset),
]
