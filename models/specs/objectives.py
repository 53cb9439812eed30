"""What is learned from: the terms of the loss.

Each output objective is a sum over classes, averaged over valid rows or positions; each feature objective a mean over
features, valid positions, and mapped layers. The total is `Σ weight · objective`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from models.specs.base import MAX_LAYERS, Spec, Weight

Layer = Annotated[int, Field(ge=0, le=MAX_LAYERS)]
LayerPairs = Annotated[list[tuple[Layer, Layer]], Field(min_length=1, max_length=MAX_LAYERS + 1)]


class SoftTargets(Spec):
    """`τ²·KL(teacher ‖ student)` at temperature τ (Hinton 2015, arXiv:1503.02531)."""

    kind: Literal["soft_targets"]
    temperature: float = Field(2.0, gt=0, le=1000, allow_inf_nan=False)
    weight: Weight = 1.0
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """`jsd` is the generalised Jensen-Shannon divergence (arXiv:2306.13649) with `beta`."""
    beta: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)
    """Of `jsd`: `M = β·P_T + (1-β)·P_S`, `D = β·KL(P_T‖M) + (1-β)·KL(P_S‖M)`; 0 means forward and 1 reverse KL."""


class HardLabels(Spec):
    """Cross-entropy with the true labels, squared error for a number; rows without one are left out of this term."""

    kind: Literal["hard_labels"]
    weight: Weight = 1.0


class LogitDistance(Spec):
    """`½·‖student − teacher‖²` of the raw logits."""

    kind: Literal["logit_distance"]
    weight: Weight = 1.0


class HiddenStates(Spec):
    """FitNets (arXiv:1412.6550): `‖W·h_S − h_T‖² / D_T` at mapped pairs of states; W is trained, then dropped."""

    kind: Literal["hidden_states"]
    weight: Weight = 1.0
    layers: LayerPairs | Literal["middle"] | None = None
    """Pairs (student state, teacher state), 0 is the embedding's output; `middle`: one pair, the state in the middle of
    the student and the one that the uniform map gives it; null: the uniform map, every state."""
    metric: Literal["mse", "cosine"] = "mse"


class AttentionTransfer(Spec):
    """Zagoruyko 2017 (arXiv:1612.03928): the distance of the normalised maps `Σ_c |h_c|²` of mapped layers' outputs."""

    kind: Literal["attention_transfer"]
    weight: Weight = 1.0
    layers: LayerPairs | None = None
    """Pairs (student layer, teacher layer), 0-based; null: the uniform map."""


class AttentionScores(Spec):
    """TinyBERT (arXiv:1909.10351): squared distance of the attention scores before their softmax."""

    kind: Literal["attention_scores"]
    weight: Weight = 1.0
    layers: LayerPairs | None = None
    """Pairs (student layer, teacher layer), 0-based; null: the uniform map."""
    heads: Literal["same", "averaged"] = "same"
    """`same` needs as many heads on both sides; `averaged` compares the means over the heads."""


class Embeddings(Spec):
    """TinyBERT's squared distance of the embeddings' outputs, through the projection that hidden states share."""

    kind: Literal["embeddings"]
    weight: Weight = 1.0


class Relations(Spec):
    """MiniLMv2 (arXiv:2012.15828): `KL(R_T ‖ R_S)` of the self-attention relations of queries, keys and values."""

    kind: Literal["relations"]
    weight: Weight = 1.0
    heads: int | None = Field(None, ge=1, le=512)
    """Relation heads, a divisor of both widths. Null: the teacher's attention heads if they divide both, else the
    greatest common divisor of the three."""
    student_layer: Layer | None = None
    """0-based; null: the last."""
    teacher_layer: Layer | None = None
    """0-based; null: the last. Upper-middle layers of a large teacher often teach better."""


OutputObjective = SoftTargets | HardLabels | LogitDistance
FeatureObjective = HiddenStates | AttentionTransfer | AttentionScores | Embeddings | Relations
Objective = Annotated[OutputObjective | FeatureObjective, Field(discriminator="kind")]


def _some_weight(objectives: list[Any]) -> list[Any]:
    if not any(objective.weight for objective in objectives):
        raise PydanticCustomError("no_weight", "at least one objective must have a weight above 0")
    return objectives


Objectives = Annotated[list[Objective], Field(min_length=1, max_length=16), AfterValidator(_some_weight)]
