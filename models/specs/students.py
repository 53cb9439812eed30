"""Which student is trained."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from models.specs.base import MAX_LAYERS, Spec, reference


class StudentFromTeacher(Spec):
    """The teacher's own weights, fewer of them: the initialisation that works best."""

    kind: Literal["from_teacher"]
    layers: (
        Annotated[int, Field(ge=1, le=MAX_LAYERS)]
        | Annotated[list[Annotated[int, Field(ge=0, lt=MAX_LAYERS)]], Field(min_length=1)]
        | None
    ) = None
    """How many (chosen by the uniform layer map) or which ones, 0-based; null: all."""
    vocabulary: int | None = Field(None, ge=1)
    """Keep so many tokens: those that the training rows use most, and every special token and single character."""
    hidden_size: int | None = Field(None, ge=8, le=8192)
    """The width: the embedding's principal directions are kept; null: the teacher's."""
    heads: int | None = Field(None, ge=1, le=128)
    """Attention heads of each layer, the most important ones, each as wide as the teacher's; null: the teacher's."""
    intermediate_size: int | None = Field(None, ge=8, le=65536)
    """Units of each feed-forward layer, the most important ones; null: the teacher's."""

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

    _check = field_validator("model")(reference)


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
