"""One label of two or more for a text or a pair of texts.

Does not know teachers, students or training. N rows, C labels; predictions are numbers of labels, int64 (N,), -1 where
a network gave no finite answer. Targets are of the same form, -1 for a row without a label.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support
from torch import Tensor

from models.errors import JobFailure
from models.inputs import Input
from models.specs import DatasetSpec
from worker.data import Answers, Encoded
from worker.objectives import Nature
from worker.outputs import Shape
from worker.tasks.base import Data, Split, TaskKind
from worker.tasks.reading import Warnings, is_text, plain, read_table, sides, split_rows, text_columns, text_inputs

# More distinct values than this are no labels but numbers, names or another text.
MAX_LABELS = 1000
_INTEGER = re.compile(r"-?\d{1,18}")


class TextClassificationKind(TaskKind):
    shape: ClassVar[Shape] = "text"
    nature: ClassVar[Nature] = "one_of"
    primary: ClassVar[str] = "accuracy"

    def read(
        self,
        dataset: DatasetSpec,
        paths: Mapping[str, Path],
        *,
        seed: int,
        recorded: Sequence[str] = (),
        slices: Sequence[str] = (),
    ) -> Data:
        """See `TaskKind.read` and `worker.tasks.reading` for the split.

        Raises `JobFailure` with the code missing_column, not_text, bad_label, bad_split_column, bad_recorded,
        one_label_only, too_many_labels, too_few_rows or unlabelled_rows.
        """
        warnings: Warnings = []
        columns = {**text_columns(self.task), self.task.label: "/task/label"}
        table = read_table(dataset, paths, columns, self._parse, recorded=recorded, slices=slices, warnings=warnings)
        labels = label_names({label for label in table.targets if label is not None})
        numbers = {name: number for number, name in enumerate(labels)}
        strata = np.array([-1 if label is None else numbers[label] for label in table.targets], np.int64)
        rows = split_rows(dataset, table, strata, seed=seed, warnings=warnings)
        warn_of_untaught(set(strata[rows["train"]].tolist()) - {-1}, labels, warnings)
        return sides(
            table, rows, targets=lambda at: strata[at], spelled=table.targets, labels=labels, warnings=warnings
        )

    def template(self) -> str:
        pair = "" if self.task.text_pair is None else "pair "
        return f"text-classification/1 {pair}max_length={self.task.max_length}"

    def targets(self, split: Split, encoded: Encoded) -> Tensor:
        del encoded
        return torch.from_numpy(split.targets)

    def predictions(self, answers: Answers, encoded: Encoded, inputs: Sequence[Input]) -> NDArray[np.int64]:
        del encoded, inputs
        finite = np.isfinite(answers.values).all(axis=1)
        return np.where(finite, answers.values.argmax(axis=1), -1).astype(np.int64)

    def scores(self, predictions: NDArray[np.int64], split: Split) -> dict[str, float]:
        """`accuracy`, `macro_f1` (the mean over the labels that occur among targets or answers) and `matthews`.

        Matthews is 0 where targets and answers are one label throughout.
        """
        truth, answers = split.targets[split.labelled], predictions[split.labelled]
        if not len(truth):
            raise ValueError("no row has a label to score against")
        occurring = sorted({*truth.tolist(), *answers.tolist()} - {-1})
        varies = len({*truth.tolist(), *answers.tolist()}) > 1
        return {
            "accuracy": float(accuracy_score(truth, answers)),
            "macro_f1": float(f1_score(truth, answers, labels=occurring, average="macro", zero_division=0)),
            "matthews": float(matthews_corrcoef(truth, answers)) if varies else 0.0,
        }

    def statistics(self, predictions: NDArray[np.int64], split: Split) -> NDArray[np.float64]:
        """Of each row whether it is right, and 1."""
        return np.stack([predictions == split.targets, np.ones(len(split))], axis=1).astype(np.float64)

    def metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums[..., 0] / np.maximum(sums[..., 1], 1)

    def right(self, predictions: NDArray[np.int64], split: Split) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = split.labelled & (predictions == split.targets)
        return found

    def same(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (first == second) & (first >= 0)
        return found

    def chance(self, split: Split, labels: Sequence[str]) -> float:
        del split
        return 1 / len(labels)

    def constant(self, split: Split, labels: Sequence[str]) -> dict[str, float] | None:
        """`scores` of answering the commonest label of `split` everywhere; None where no row has a label."""
        if not split.labelled.any():
            return None
        commonest = np.bincount(split.targets[split.labelled], minlength=len(labels)).argmax()
        return self.scores(np.full(len(split), commonest, np.int64), split)

    def per_class(self, predictions: NDArray[np.int64], split: Split, labels: Sequence[str]) -> list[dict[str, Any]]:
        return class_table(split.targets[split.labelled], predictions[split.labelled], labels)

    def shown(self, predictions: NDArray[np.int64], row: int, labels: Sequence[str]) -> Any:
        return {"label": labels[predictions[row]] if predictions[row] >= 0 else None}

    def truth(self, split: Split, row: int, labels: Sequence[str]) -> Any:
        return self.shown(split.targets, row, labels) if split.labelled[row] else None

    def _parse(self, table: pa.Table) -> tuple[list[Input | None], list[str | None]]:
        return text_inputs(table, self.task), label_values(table.column(self.task.label), self.task.label)


# --- labels, of one kind or the other ---------------------------------------------------------------------------------


def class_table(targets: NDArray[Any], predictions: NDArray[Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each label; 0 where a quotient has no denominator.

    Both are numbers of labels (N,), or indicators of them (N, C).
    """
    if not len(targets):
        zeros = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
        return [{"label": label, **zeros} for label in labels]
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predictions, labels=range(len(labels)), average=None, zero_division=0.0
    )
    return [
        {
            "label": label,
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(support[index]),
        }
        for index, label in enumerate(labels)
    ]


def label_values(column: pa.ChunkedArray | pa.Array, name: str) -> list[str | None]:
    """The labels' names: text without the white space around it, integers in decimal, booleans as true and false.

    None for what is null or blank. Raises `JobFailure` (`bad_label`).
    """
    column = plain(column)
    values = column.to_pylist()
    if is_text(column.type):
        return [None if value is None else value.strip() or None for value in values]
    if pa.types.is_boolean(column.type):
        return [None if value is None else str(value).lower() for value in values]
    if pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in values]
    if pa.types.is_null(column.type):
        return [None] * len(values)
    # Integers with gaps arrive as floating-point numbers from tools whose integers cannot be null.
    if pa.types.is_floating(column.type):
        whole = [None if value is None or value != value else value for value in values]  # noqa: PLR0124 - NaN is a gap
        if all(value is None or float(value).is_integer() for value in whole):
            return [None if value is None else str(int(value)) for value in whole]
    raise JobFailure(
        f"the column {name!r} holds {column.type}; a label is text, an integer or a boolean",
        code="bad_label",
        hint="for numbers to be predicted use text-regression; for lists of labels set multi_label",
        pointer="/task/label",
    )


def label_names(names: set[str]) -> tuple[str, ...]:
    """`names` in the order of the logits: as numbers where all are integers, else as texts.

    Raises `JobFailure` with the code one_label_only or too_many_labels.
    """
    if len(names) < 2:
        raise JobFailure(
            f"the label column has {'only one value' if names else 'no value at all'}; there is nothing to tell apart",
            code="one_label_only",
            hint="check that it is the column with the label, and that rows of several labels are there",
            pointer="/task/label",
        )
    if len(names) > MAX_LABELS:
        raise JobFailure(
            f"the label column has {len(names)} different values, more than {MAX_LABELS}",
            code="too_many_labels",
            hint="check that it is the column with the label",
            pointer="/task/label",
        )
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def warn_of_untaught(taught: set[int], labels: Sequence[str], warnings: Warnings) -> None:
    """Warns of labels that no training row has, unless training rows have no label at all and need none."""
    untaught = sorted(set(range(len(labels))) - taught)
    if untaught and taught:
        names = ", ".join(repr(labels[number]) for number in untaught[:10])
        warnings.append(("label_missing_in_train", f"no training row has the label {names}"))
