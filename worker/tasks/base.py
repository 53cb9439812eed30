"""What every kind of task offers to the recipe: rows, how they are encoded, what is learned from, and scores.

N inputs, E encodings (more than N where contexts are read in windows), C numbers of a place, K statistics of an input.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models import inputs as reading
from models.inputs import Input
from models.specs import DatasetSpec, Task
from worker.data import Answers, Encoded
from worker.objectives import Nature
from worker.outputs import Shape

Predictions = Any
Targets = Any


@dataclass(frozen=True)
class Split:
    """Rows of one side: N inputs, and what is true of them in the form that the task's kind understands."""

    inputs: list[Input]
    targets: Targets
    labelled: NDArray[np.bool_]
    """(N,)"""

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Data:
    """What a job is trained and judged on.

    `hashes` has the SHA-256 of the rows of `train`, `validation` and `test`, inputs and targets in order. `warnings`
    are pairs of a stable code and a sentence.
    """

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    """In the order of the logits. A regression has one, the name of its column; question answering has none."""
    hashes: dict[str, str]
    warnings: list[tuple[str, str]]
    recorded: Mapping[str, Mapping[str, NDArray[np.float32]]]
    """Columns of recorded answers by their name and split: (N, C) as they stand there, NaN where a row has none."""
    slices: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    """Further columns by their name: the value of each test row as text, None where it has none."""


class TaskKind(ABC):
    """One kind of task. Made for one spec and one job; knows no network, teacher or student."""

    shape: ClassVar[Shape]
    nature: ClassVar[Nature]
    primary: ClassVar[str]
    """The metric that decides: the best epoch, the drop, the gate. Higher is better, at most 1."""

    def __init__(self, task: Task) -> None:
        self.task: Any = task

    @property
    def width(self) -> int | None:
        """C where the kind fixes it; None: as many as there are labels."""
        return None

    def serving(self) -> dict[str, Any]:
        """What a published student's config.json has to say beside what transformers puts there."""
        return {"limbeck_pair": self.task.text_pair is not None} if self.shape == "text" else {}

    # Rows.

    @abstractmethod
    def read(
        self,
        dataset: DatasetSpec,
        paths: Mapping[str, Path],
        *,
        seed: int,
        recorded: Sequence[str] = (),
        slices: Sequence[str] = (),
    ) -> Data:
        """The rows of `dataset`, split as it says; `recorded` names further columns with lists of numbers, `slices`
        those by whose values the test rows are told apart.

        Raises `JobFailure`.
        """

    @abstractmethod
    def template(self) -> str:
        """What decides, beside the input itself, what a network is shown of a row; part of a signal's key."""

    def encode(self, tokenizer: Any, inputs: Sequence[Input]) -> Encoded:
        """`inputs` as token ids. `tokenizer` is a fast transformers tokenizer, left without truncation and padding."""
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        stride = getattr(self.task, "stride", 0)
        found = reading.encode(backend, inputs, max_length=self.task.max_length, stride=stride)
        pairs = [(row, one) for row, windows in enumerate(found) for one in windows]
        ids = [np.array(one.ids, np.int32) for _, one in pairs]
        types = [np.array(one.type_ids, np.int32) for _, one in pairs]
        lengths = np.fromiter((len(row) for row in ids), np.int64, len(ids))
        places = None
        offsets = None
        if self.shape != "text":
            places = [_places(inputs[row], one) for row, one in pairs]
        if self.shape == "span" and places is not None:
            offsets = [
                np.array(one.offsets, np.int32).reshape(-1, 2)[at] for (_, one), at in zip(pairs, places, strict=True)
            ]
        rows = None if len(pairs) == len(inputs) else np.array([row for row, _ in pairs], np.int64)
        any_types = any(row.any() for row in types)
        return Encoded(ids, lengths, int(tokenizer.pad_token_id), types if any_types else None, rows, places, offsets)

    @abstractmethod
    def targets(self, split: Split, encoded: Encoded) -> Tensor:
        """What the hard labels say of each encoding, for training.

        one_of, as a whole: int64 (E,), -1 for none. any_of: float32 (E, C), NaN for none. number: float32 (E,), NaN.
        Words: int64 (E, P), padded with -1. Span: int64 (E, 2), the places where the answer begins and ends, 0 where it
        is not in this window, -1 for none.
        """

    # Answers.

    @abstractmethod
    def predictions(self, answers: Answers, encoded: Encoded, inputs: Sequence[Input]) -> Predictions:
        """What the logits `answers` of `encoded` say of each of `inputs`."""

    @abstractmethod
    def scores(self, predictions: Predictions, split: Split) -> dict[str, float]:
        """Every metric that is customary for the task, `primary` among them. Rows without a label are left out.

        Raises `ValueError` where no row has one.
        """

    @abstractmethod
    def statistics(self, predictions: Predictions, split: Split) -> NDArray[np.float64]:
        """(N, K) additive statistics of each row, of which `metric` makes the primary metric. Every row has a label."""

    @abstractmethod
    def metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The primary metric (…) of sums of `statistics` (…, K) over rows; 0 where it is not defined."""

    @abstractmethod
    def right(self, predictions: Predictions, split: Split) -> NDArray[np.bool_] | None:
        """(N,) whether a row is answered without any mistake; None where an answer is a number."""

    @abstractmethod
    def same(self, first: Predictions, second: Predictions) -> NDArray[np.bool_] | None:
        """(N,) whether two networks give one answer; None where an answer is a number."""

    @abstractmethod
    def chance(self, split: Split, labels: Sequence[str]) -> float:
        """What a blind guess reaches in the primary metric: a teacher that reaches no more has learned nothing."""

    @abstractmethod
    def constant(self, split: Split, labels: Sequence[str]) -> dict[str, float] | None:
        """`scores` of the best constant answer, such as the commonest label; None where it says nothing."""

    def per_class(self, predictions: Predictions, split: Split, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Label by label `{label, precision, recall, f1, support}`; empty where there are no labels."""
        del predictions, split, labels
        return []

    @abstractmethod
    def shown(self, predictions: Predictions, row: int, labels: Sequence[str]) -> Any:
        """One answer, as JSON that a person reads."""

    @abstractmethod
    def truth(self, split: Split, row: int, labels: Sequence[str]) -> Any:
        """What is true of a row, as JSON that a person reads."""


def _places(item: Input, encoding: Any) -> NDArray[np.int32]:
    found = reading.places(item, encoding)
    if found is None:
        raise ValueError("this input has no places")
    return found
