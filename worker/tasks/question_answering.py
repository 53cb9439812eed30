"""The stretch of a context that answers a question; long contexts are read in overlapping windows.

Does not know teachers, students or training. N rows, E windows (N or more), P places of a window: place 0 stands for
"the answer is not in this window", the others are tokens of the context. Predictions are a list of N texts, "" for no
answer. Targets are a list of the answers of each row: tuples of (text, first character), () for none, None unlabelled.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.decoding import best_spans
from models.errors import JobFailure
from models.inputs import Input, Question
from models.specs import DatasetSpec
from worker.data import Answers, Encoded, normalise
from worker.objectives import Nature
from worker.outputs import Shape
from worker.tasks.base import Data, Split, TaskKind
from worker.tasks.reading import Table, Warnings, is_text, plain, read_table, sides, split_rows, texts

Truth = tuple[tuple[str, int], ...]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Fewer answers than this share that do not stand where they should are somebody's slip; more are a wrong column.
_SLIPS = 0.01


class QuestionAnsweringKind(TaskKind):
    shape: ClassVar[Shape] = "span"
    nature: ClassVar[Nature] = "one_of"
    primary: ClassVar[str] = "f1"

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self._allow_none = False

    @property
    def width(self) -> int | None:
        return 2

    def serving(self) -> dict[str, Any]:
        return {"limbeck_stride": self.task.stride, "limbeck_allow_none": self._allow_none}

    def read(
        self,
        dataset: DatasetSpec,
        paths: Mapping[str, Path],
        *,
        seed: int,
        recorded: Sequence[str] = (),
        slices: Sequence[str] = (),
    ) -> Data:
        """Questions about one context stay on one side. Raises `JobFailure` with the code not_text, bad_answer, or as
        `read_table` and `split_rows` say; answers that do not stand in their context are dropped with a warning while
        they are few."""
        warnings: Warnings = []
        task = self.task
        columns = {
            task.question: "/task/question",
            task.context: "/task/context",
            task.answers: "/task/answers",
        }
        table: Table[Truth] = read_table(
            dataset,
            paths,
            columns,
            self._parse,
            recorded=recorded,
            slices=slices,
            warnings=warnings,
            what="a question and a context",
        )
        table, targets = _standing(table, warnings)
        if not any(targets):
            raise JobFailure("no row has an answer", code="bad_answer", hint=_SHAPE, pointer="/task/answers")
        strata = np.array([-1 if found is None else int(bool(found)) for found in targets], np.int64)
        rows = split_rows(dataset, table, strata, seed=seed, warnings=warnings, of=_context)
        # By the training rows alone: how answers are read is learned, and test rows teach nothing.
        self._allow_none = any(targets[row] == () for row in rows["train"])
        spelled = [None if found is None else json.dumps(found, ensure_ascii=False) for found in targets]
        return sides(
            table,
            rows,
            targets=lambda at: [targets[row] for row in at],
            spelled=spelled,
            labels=(),
            warnings=warnings,
        )

    def template(self) -> str:
        return f"question-answering/1 max_length={self.task.max_length} stride={self.task.stride}"

    def targets(self, split: Split, encoded: Encoded) -> Tensor:
        """int64 (E, 2): the places where the first answer begins and ends; 0 where it is not all in the window."""
        found = np.zeros((len(encoded), 2), np.int64)
        rows = np.arange(len(encoded)) if encoded.rows is None else encoded.rows
        for window, row in enumerate(rows):
            truth: Truth | None = split.targets[row]
            if truth is None:
                found[window] = -1
            elif truth and encoded.offsets is not None:
                text, start = truth[0]
                start += len(text) - len(text.lstrip())  # white space is in no token
                more = window > 0 and rows[window - 1] == row, window + 1 < len(rows) and rows[window + 1] == row
                found[window] = _places_of(encoded.offsets[window], start, start + len(text.strip()), more)
        return torch.from_numpy(found)

    # Answers.

    def predictions(self, answers: Answers, encoded: Encoded, inputs: Sequence[Input]) -> list[str]:
        if encoded.offsets is None:
            raise ValueError("windows without offsets have no text")
        rows = np.arange(len(encoded)) if encoded.rows is None else encoded.rows
        windows: list[list[int]] = [[] for _ in inputs]
        for window, row in enumerate(rows):
            windows[row].append(window)
        found = []
        for item, own in zip(inputs, windows, strict=True):
            if not isinstance(item, Question):
                raise TypeError("an input of this task is a question")
            (best,) = best_spans(
                [answers[window] for window in own],
                [encoded.offsets[window] for window in own],
                allow_none=self._allow_none,
            )
            found.append(item.context[best.start : best.end].strip())
        return found

    def scores(self, predictions: list[str], split: Split) -> dict[str, float]:
        """`f1` of words and `exact_match` after SQuAD's normalisation, the best over the true answers."""
        rows = np.flatnonzero(split.labelled)
        if not len(rows):
            raise ValueError("no row has an answer to score against")
        pairs = [(predictions[row], split.targets[row]) for row in rows]
        return {
            "f1": float(np.mean([_f1(answer, truth) for answer, truth in pairs])),
            "exact_match": float(np.mean([_exact(answer, truth) for answer, truth in pairs])),
        }

    def statistics(self, predictions: list[str], split: Split) -> NDArray[np.float64]:
        """Of each row its F1, and 1."""
        return np.array(
            [(_f1(answer, truth or ()), 1.0) for answer, truth in zip(predictions, split.targets, strict=True)],
            np.float64,
        ).reshape(-1, 2)

    def metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums[..., 0] / np.maximum(sums[..., 1], 1)

    def right(self, predictions: list[str], split: Split) -> NDArray[np.bool_]:
        exact = [_exact(answer, truth or ()) for answer, truth in zip(predictions, split.targets, strict=True)]
        return split.labelled & np.array(exact, np.bool_)

    def same(self, first: list[str], second: list[str]) -> NDArray[np.bool_]:
        return np.array([_plain(one) == _plain(two) for one, two in zip(first, second, strict=True)], np.bool_)

    def chance(self, split: Split, labels: Sequence[str]) -> float:
        constant = self.constant(split, labels)
        return 0.0 if constant is None else constant["f1"]

    def constant(self, split: Split, labels: Sequence[str]) -> dict[str, float] | None:
        """No answer at all, where that may be right."""
        del labels
        if not self._allow_none or not split.labelled.any():
            return None
        return self.scores([""] * len(split), split)

    def shown(self, predictions: list[str], row: int, labels: Sequence[str]) -> Any:
        del labels
        return {"answer": predictions[row]}

    def truth(self, split: Split, row: int, labels: Sequence[str]) -> Any:
        del labels
        truth: Truth | None = split.targets[row]
        return None if truth is None else {"answers": [text for text, _ in truth]}

    # Reading.

    def _parse(self, table: pa.Table) -> tuple[list[Input | None], list[Truth | None]]:
        task = self.task
        questions = texts(table.column(task.question), task.question, "/task/question")
        contexts = texts(table.column(task.context), task.context, "/task/context")
        inputs: list[Input | None] = [
            None if question is None or context is None else Question(question, context)
            for question, context in zip(questions, contexts, strict=True)
        ]
        column = plain(table.column(task.answers))
        rows: list[Any] = column.to_pylist()
        if is_text(column.type):
            rows = [_from_json(text) for text in rows]
        return inputs, [_truth(value, row, task.answers) for row, value in enumerate(rows)]


_SHAPE = (
    'an answer is {"text": ["…"], "answer_start": [17]}; empty lists say that there is none, null that nobody looked'
)


def _from_json(text: str | None) -> Any:
    if text is None or not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _truth(value: Any, row: int, name: str) -> Truth | None:
    if value is None:
        return None
    found, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    if (
        not isinstance(found, list)
        or not isinstance(starts, list)
        or len(found) != len(starts)
        or not all(isinstance(text, str) and text.strip() for text in found)
        or not all(type(start) is int and start >= 0 for start in starts)
    ):
        raise JobFailure(
            f"row {row} of the column {name!r} is no answer", code="bad_answer", hint=_SHAPE, pointer="/task/answers"
        )
    return tuple(zip(found, starts, strict=True))


def _standing(table: Table[Truth], warnings: Warnings) -> tuple[Table[Truth], list[Truth | None]]:
    """The rows whose answers stand in their context at their place, or that have none; and their targets."""
    kept: list[tuple[int, Truth | None]] = []
    lost = []
    for row, (item, truth) in enumerate(zip(table.inputs, table.targets, strict=True)):
        if not truth or not isinstance(item, Question):
            kept.append((row, truth))
        elif there := tuple(one for one in truth if item.context.startswith(one[0], one[1])):
            kept.append((row, there))
        else:
            lost.append(row)
    if len(lost) > max(1, _SLIPS * len(table.inputs)):
        raise JobFailure(
            f"{len(lost)} answers do not stand in their context at answer_start, the first in row {lost[0]}",
            code="bad_answer",
            hint="answer_start counts characters of the context, from 0",
            pointer="/task/answers",
        )
    if lost:
        message = f"{len(lost)} rows whose answers do not stand in their context were dropped"
        warnings.append(("answer_not_found", message))
    rows = [row for row, _ in kept]
    left = replace(
        table,
        inputs=[table.inputs[row] for row in rows],
        targets=[truth for _, truth in kept],
        parts=[table.parts[row] for row in rows],
        recorded={name: values[rows] for name, values in table.recorded.items()},
        slices={name: [values[row] for row in rows] for name, values in table.slices.items()},
    )
    return left, left.targets


def _context(item: Input) -> str:
    return normalise(item.context) if isinstance(item, Question) else ""


def _places_of(offsets: NDArray[np.int32], start: int, end: int, more: tuple[bool, bool]) -> tuple[int, int]:
    """The first and the last place of the characters `start` to `end`; 0, 0 where they are not all in the window.

    `more`: whether the context has windows before and after this one. Only there is an answer cut; elsewhere some of
    its characters, such as combining accents, may stand in no token.
    """
    inside = np.flatnonzero((offsets[1:, 1] > start) & (offsets[1:, 0] < end)) + 1
    if (
        not len(inside)
        or (more[0] and inside[0] == 1 and offsets[1, 0] > start)
        or (more[1] and inside[-1] == len(offsets) - 1 and offsets[-1, 1] < end)
    ):
        return 0, 0
    return int(inside[0]), int(inside[-1])


# --- SQuAD's measures -------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space, as SQuAD's own script has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _exact(answer: str, truth: Truth) -> bool:
    return any(_plain(answer) == _plain(text) for text, _ in truth) if truth else not _plain(answer)


def _f1(answer: str, truth: Truth) -> float:
    if not truth:
        return float(not _plain(answer))
    return max(_f1_of(_plain(answer).split(), _plain(text).split()) for text, _ in truth)


def _f1_of(answer: list[str], truth: list[str]) -> float:
    if not answer or not truth:
        return float(answer == truth)
    common = sum((Counter(answer) & Counter(truth)).values())
    return 2 * common / (len(answer) + len(truth))
