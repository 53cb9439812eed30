"""What every part of a job spec stands on: frozen models that are strict about names, and what this version lacks."""

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from models import references
from models.errors import Invalid

MAX_LENGTH = 8192
MAX_LAYERS = 96


def refuse(what: str) -> NoReturn:
    raise PydanticCustomError("not_available_yet", "{what} is not available in this version", {"what": what})


def not_yet(what: str) -> BeforeValidator:
    """A field that the contract names and this version lacks: anything but null is refused."""

    def check(value: object) -> None:
        if value is not None:
            refuse(what)

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
        refuse(f"{kind!r}")


def reference(text: str) -> str:
    """A model reference in its one spelling."""
    try:
        return str(references.parse(text))
    except Invalid as error:
        raise PydanticCustomError("bad_reference", "{message}", {"message": error.message}) from error


Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Rows = Annotated[int, Field(ge=1)]
Column = Annotated[str, Field(min_length=1, max_length=200)]
