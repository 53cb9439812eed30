"""Which rows are trained on, chosen on and judged on."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from models.specs.base import Column, Rows, Share, Spec


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
