"""A number for a text or a pair of texts, such as their similarity.

Does not know teachers, students or training. N rows; predictions are float32 (N,), and so are the targets, NaN in rows
without a number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from models.errors import JobFailure
from models.inputs import Input
from models.specs import DatasetSpec
from worker.data import Answers, Encoded, Rows
from worker.objectives import Nature
from worker.outputs import Shape
from worker.tasks.base import Data, Split, TaskKind
from worker.tasks.reading import Warnings, plain, read_table, sides, split_rows, text_columns, text_inputs

Numbers = NDArray[np.float32]

# A draw is even in so many quantiles of the target.
_BINS = 10
# A spread of less than this, in proportion to the values, is rounding.
_ROUNDING = 1e-12
# What a network answers in is a float32.
_LARGEST = float(np.finfo(np.float32).max)


class TextRegressionKind(TaskKind):
    shape: ClassVar[Shape] = "text"
    nature: ClassVar[Nature] = "number"
    primary: ClassVar[str] = "pearson"

    @property
    def width(self) -> int:
        return 1

    def read(
        self,
        dataset: DatasetSpec,
        paths: Mapping[str, Path],
        *,
        seed: int,
        recorded: Sequence[str] = (),
        slices: Sequence[str] = (),
    ) -> Data:
        """See `TaskKind.read` and `worker.tasks.reading` for the split, which is even in ten quantiles of the target.

        Raises `JobFailure` with the code missing_column, not_text, bad_target, bad_split_column, bad_recorded,
        one_value_only, too_few_rows or unlabelled_rows.
        """
        warnings: Warnings = []
        columns = {**text_columns(self.task), self.task.target: "/task/target"}
        table = read_table(dataset, paths, columns, self._parse, recorded=recorded, slices=slices, warnings=warnings)
        values = np.array([np.nan if one is None else one for one in table.targets], np.float32)
        if len(np.unique(values[~np.isnan(values)])) < 2:
            raise JobFailure(
                f"the column {self.task.target!r} has fewer than two different numbers; there is nothing to predict",
                code="one_value_only",
                hint="check that it is the column with the number",
                pointer="/task/target",
            )
        rows = split_rows(dataset, table, _strata(values), seed=seed, warnings=warnings)
        spelled = [None if one is None else repr(one) for one in table.targets]
        labels = (self.task.target,)
        return sides(table, rows, targets=lambda at: values[at], spelled=spelled, labels=labels, warnings=warnings)

    def template(self) -> str:
        pair = "" if self.task.text_pair is None else "pair "
        return f"text-regression/1 {pair}max_length={self.task.max_length}"

    def targets(self, split: Split, encoded: Encoded) -> Tensor:
        del encoded
        return torch.from_numpy(split.targets)

    def predictions(self, answers: Answers, encoded: Encoded, inputs: Sequence[Input]) -> Numbers:
        """An answer that is not a finite number counts as 0."""
        del encoded, inputs
        return np.nan_to_num(answers.values[:, 0], nan=0.0, posinf=0.0, neginf=0.0)

    def scores(self, predictions: Numbers, split: Split) -> dict[str, float]:
        """`pearson` and `spearman`, 0 where one side does not vary, and `mse`, the mean squared error."""
        x, y = predictions[split.labelled].astype(np.float64), split.targets[split.labelled].astype(np.float64)
        if not len(y):
            raise ValueError("no row has a number to score against")
        first, second = _standard(x), _standard(y)
        varies = first.any() and second.any()
        return {
            "pearson": float(pearsonr(first, second).statistic) if varies else 0.0,
            "spearman": float(spearmanr(x, y).statistic) if varies else 0.0,
            "mse": float(np.square(x - y).mean()),
        }

    def statistics(self, predictions: Numbers, split: Split) -> NDArray[np.float64]:
        """Moments of each row: x, y, x², y², xy and 1, of predictions and targets.

        Both are brought to mean 0 and variance 1 over the rows first, which a correlation does not notice and without
        which sums of squares of large numbers would lose it to rounding.
        """
        x, y = _standard(predictions.astype(np.float64)), _standard(split.targets.astype(np.float64))
        return np.stack([x, y, x * x, y * y, x * y, np.ones_like(x)], axis=1)

    def metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pearson's correlation of what was summed; 0 where one side does not vary."""
        moments = sums / np.maximum(sums[..., 5:], 1)
        x, y, xx, yy, xy = (moments[..., place] for place in range(5))
        var_x, var_y = xx - x * x, yy - y * y
        varies = (var_x > _ROUNDING * xx) & (var_y > _ROUNDING * yy)
        scale = np.sqrt(np.where(varies, var_x, 1)) * np.sqrt(np.where(varies, var_y, 1))
        found: NDArray[np.float64] = np.clip(np.where(varies, (xy - x * y) / scale, 0.0), -1, 1)
        return found

    def right(self, predictions: Numbers, split: Split) -> None:
        """None: an answer is a number."""

    def same(self, first: Numbers, second: Numbers) -> None:
        """None: an answer is a number."""

    def chance(self, split: Split, labels: Sequence[str]) -> float:
        del split, labels
        return 0.0

    def constant(self, split: Split, labels: Sequence[str]) -> None:
        """None: the best constant, the mean, has a correlation of 0."""

    def shown(self, predictions: Numbers, row: int, labels: Sequence[str]) -> Any:
        del labels
        return {"score": float(predictions[row])}

    def truth(self, split: Split, row: int, labels: Sequence[str]) -> Any:
        return self.shown(split.targets, row, labels) if split.labelled[row] else None

    def _parse(self, table: pa.Table) -> tuple[list[Input | None], list[float | None]]:
        return text_inputs(table, self.task), _numbers(table.column(self.task.target), self.task.target)


def _numbers(column: pa.ChunkedArray, name: str) -> list[float | None]:
    """The numbers of a column, None for null and NaN. Raises `JobFailure` (`bad_target`)."""
    column = plain(column)
    kind = column.type
    if pa.types.is_null(kind):
        return [None] * len(column)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise JobFailure(
            f"the column {name!r} holds {kind}; what is to be predicted is a number",
            code="bad_target",
            hint="for labels use text-classification",
            pointer="/task/target",
        )
    found = [None if value is None else float(value) for value in column.to_pylist()]
    if any(value is not None and abs(value) > _LARGEST for value in found):
        raise JobFailure(
            f"the column {name!r} holds a number that is not finite, or is too large",
            code="bad_target",
            hint="drop such rows, or leave the number empty",
            pointer="/task/target",
        )
    return [None if value is None or value != value else value for value in found]  # noqa: PLR0124 - NaN is a gap


def _strata(values: Numbers) -> Rows:
    known = ~np.isnan(values)
    edges = np.quantile(values[known], np.arange(1, _BINS) / _BINS)
    return np.where(known, np.searchsorted(edges, values, side="right"), -1).astype(np.int64)


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` (N,) with mean 0 and variance 1; all 0 where they do not vary."""
    spread = values.std()
    if spread <= _ROUNDING * np.abs(values).max(initial=0.0):
        return np.zeros_like(values)
    found: NDArray[np.float64] = (values - values.mean()) / spread
    return found
