"""How long and how fast a network is trained."""

from typing import Literal

from pydantic import Field

from models.specs.base import Spec


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
