"""One file per kind of task: how it reads rows, tokenizes them for training, and scores answers.

Decoding answers is `models.runtime`'s, so that what is measured is what is served.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from models.errors import JobFailure
from models.specs import (
    DatasetSpec,
    QuestionAnswering,
    Task,
    Text2Text,
    TextClassification,
    TextGeneration,
    TextRegression,
    TokenClassification,
)
from worker.data import Encoded
from worker.tasks import text_classification


class TaskKind(Protocol):
    """What a module of this package offers. `task` is the spec of the kind that the module is for."""

    def read(
        self, task: Any, dataset: DatasetSpec, paths: Mapping[str, Path], *, seed: int
    ) -> text_classification.Data: ...

    def template(self, task: Any) -> str: ...

    def encode(self, tokenizer: Any, texts: Sequence[str], max_length: int) -> Encoded: ...

    def scores(self, logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> dict[str, float]: ...


def for_task(task: Task) -> TaskKind:
    """The module for this kind of task. Raises `JobFailure` (`not_available_yet`) where there is none."""
    match task:
        case TextClassification():
            return text_classification
        case TextRegression() | TokenClassification() | QuestionAnswering() | TextGeneration() | Text2Text():
            raise JobFailure(
                f"{task.kind!r} is not available in this version", code="not_available_yet", pointer="/task/kind"
            )
        case _:
            assert_never(task)
