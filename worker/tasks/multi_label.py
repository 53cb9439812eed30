"""Any number of labels for a text or a pair of texts.

Does not know teachers, students or training. N rows, C labels; predictions are bool (N, C), true where a logit is above
0. Targets are float32 (N, C) of 0 and 1, NaN in rows without a label; a row may also be labelled with none of them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from models.errors import JobFailure
from models.inputs import Input
from models.specs import DatasetSpec
from worker.data import Answers, Encoded
from worker.objectives import Nature
from worker.outputs import Shape
from worker.tasks.base import Data, Split, TaskKind
from worker.tasks.reading import (
    Warnings,
    is_list,
    is_text,
    plain,
    read_table,
    sides,
    split_rows,
    text_columns,
    text_inputs,
)
from worker.tasks.text_classification import class_table, label_names, label_values, warn_of_untaught

_BAR = "|"


class MultiLabelKind(TaskKind):
    shape: ClassVar[Shape] = "text"
    nature: ClassVar[Nature] = "any_of"
    primary: ClassVar[str] = "micro_f1"

    def read(
        self,
        dataset: DatasetSpec,
        paths: Mapping[str, Path],
        *,
        seed: int,
        recorded: Sequence[str] = (),
        slices: Sequence[str] = (),
    ) -> Data:
        """See `TaskKind.read` and `worker.tasks.reading` for the split, which is even in the rows' first labels.

        Raises `JobFailure` with the code missing_column, not_text, bad_label, bad_split_column, bad_recorded,
        one_label_only, too_many_labels, too_few_rows or unlabelled_rows.
        """
        warnings: Warnings = []
        columns = {**text_columns(self.task), self.task.label: "/task/label"}
        table = read_table(dataset, paths, columns, self._parse, recorded=recorded, slices=slices, warnings=warnings)
        labels = label_names({name for names in table.targets for name in names or ()})
        numbers = {name: number for number, name in enumerate(labels)}
        truth = np.zeros((len(table.inputs), len(labels)), np.float32)
        strata = np.full(len(table.inputs), len(labels), np.int64)
        for row, names in enumerate(table.targets):
            if names is None:
                truth[row], strata[row] = np.nan, -1
            elif names:
                own = sorted(numbers[name] for name in names)
                truth[row, own], strata[row] = 1, own[0]
        rows = split_rows(dataset, table, strata, seed=seed, warnings=warnings)
        taught = np.nan_to_num(truth[rows["train"]]).any(axis=0)
        warn_of_untaught(set(np.flatnonzero(taught).tolist()), labels, warnings)
        spelled = [None if names is None else json.dumps(sorted(names), ensure_ascii=False) for names in table.targets]
        return sides(table, rows, targets=lambda at: truth[at], spelled=spelled, labels=labels, warnings=warnings)

    def template(self) -> str:
        pair = "" if self.task.text_pair is None else "pair "
        return f"text-classification/1 multi-label {pair}max_length={self.task.max_length}"

    def targets(self, split: Split, encoded: Encoded) -> Tensor:
        del encoded
        return torch.from_numpy(split.targets)

    def predictions(self, answers: Answers, encoded: Encoded, inputs: Sequence[Input]) -> NDArray[np.bool_]:
        del encoded, inputs
        return answers.values > 0

    def scores(self, predictions: NDArray[np.bool_], split: Split) -> dict[str, float]:
        """`micro_f1`, `macro_f1` and `exact`, the share of rows whose set of labels is right as a whole.

        Macro-F1 is the mean over the labels that occur among targets or answers.
        """
        truth, answers = split.targets[split.labelled] > 0, predictions[split.labelled]
        if not len(truth):
            raise ValueError("no row has a label to score against")
        occurring = truth.any(axis=0) | answers.any(axis=0)
        by_label = f1_score(truth, answers, average=None, zero_division=0)[occurring]
        return {
            "micro_f1": float(f1_score(truth, answers, average="micro", zero_division=0)),
            "macro_f1": float(by_label.mean()) if len(by_label) else 0.0,
            "exact": float(accuracy_score(truth, answers)),
        }

    def statistics(self, predictions: NDArray[np.bool_], split: Split) -> NDArray[np.float64]:
        """Of each row how many labels were predicted rightly, how many were predicted, and how many are true."""
        truth = split.targets > 0
        return np.stack([(predictions & truth).sum(1), predictions.sum(1), truth.sum(1)], axis=1).astype(np.float64)

    def metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)

    def right(self, predictions: NDArray[np.bool_], split: Split) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = split.labelled & (predictions == (split.targets > 0)).all(axis=1)
        return found

    def same(self, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (first == second).all(axis=1)
        return found

    def chance(self, split: Split, labels: Sequence[str]) -> float:
        """The micro-F1 of every label for every row, the best that drawing labels blindly reaches."""
        truth = split.targets[split.labelled] > 0
        true = float(truth.sum())
        return 2 * true / (true + truth.shape[0] * len(labels)) if true else 0.0

    def constant(self, split: Split, labels: Sequence[str]) -> dict[str, float] | None:
        """`scores` of the set of commonest labels with the best micro-F1; None where no row has a label."""
        truth = split.targets[split.labelled] > 0
        if not len(truth):
            return None
        counts = truth.sum(axis=0)
        order = np.argsort(-counts, kind="stable")
        sizes = np.arange(1, len(labels) + 1)
        best = (2 * counts[order].cumsum() / (sizes * len(truth) + counts.sum())).argmax()
        answers = np.zeros((len(split), len(labels)), np.bool_)
        answers[:, order[: best + 1]] = True
        return self.scores(answers, split)

    def per_class(self, predictions: NDArray[np.bool_], split: Split, labels: Sequence[str]) -> list[dict[str, Any]]:
        return class_table(split.targets[split.labelled] > 0, predictions[split.labelled], labels)

    def shown(self, predictions: NDArray[np.bool_], row: int, labels: Sequence[str]) -> Any:
        return {"labels": [label for label, there in zip(labels, predictions[row], strict=True) if there]}

    def truth(self, split: Split, row: int, labels: Sequence[str]) -> Any:
        return self.shown(split.targets > 0, row, labels) if split.labelled[row] else None

    def _parse(self, table: pa.Table) -> tuple[list[Input | None], list[frozenset[str] | None]]:
        return text_inputs(table, self.task), _label_sets(table.column(self.task.label), self.task.label)


def _label_sets(column: pa.ChunkedArray, name: str) -> list[frozenset[str] | None]:
    """The labels of each row, from a list or from text between vertical bars; None: the row has no label.

    An empty list says that none of them is true. An empty text says nothing, as an empty cell does; bars alone say
    none. Raises `JobFailure` (`bad_label`).
    """
    column = plain(column)
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if is_text(column.type):
        return [
            frozenset(filter(None, map(str.strip, text.split(_BAR)))) if text and text.strip() else None
            for text in column.to_pylist()
        ]
    if is_list(column.type):
        rows = column.to_pylist()
        kind = column.type.value_type
        flat = iter(label_values(pa.array([one for row in rows for one in row or ()], kind), name))
        return [None if row is None else frozenset(filter(None, (next(flat) for _ in row))) for row in rows]
    raise JobFailure(
        f"the column {name!r} holds {column.type}; with multi_label it holds lists of labels, or text such as 'a|b'",
        code="bad_label",
        hint="for one label a row leave multi_label out",
        pointer="/task/label",
    )
