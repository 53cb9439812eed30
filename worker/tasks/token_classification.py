"""A tag for each word of a row; in the BIO scheme neighbouring words make an entity, and entities are what is scored.

Does not know teachers, students or training. N rows, W words of a row, C tags; predictions are a list of int64 (W,),
-1 for a word that was cut off. Targets are of the same form; a row without tags has -1 everywhere.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.decoding import OUTSIDE, spans_of_tags
from models.errors import JobFailure
from models.inputs import Input, Words
from models.specs import DatasetSpec
from worker.data import Answers, Encoded
from worker.objectives import Nature
from worker.outputs import Shape
from worker.tasks.base import Data, Split, TaskKind
from worker.tasks.reading import Table, Warnings, is_list, is_text, plain, read_table, sides, split_rows
from worker.tasks.text_classification import MAX_LABELS, warn_of_untaught

Tags = list[NDArray[np.int64]]


class TokenClassificationKind(TaskKind):
    shape: ClassVar[Shape] = "words"
    nature: ClassVar[Nature] = "one_of"
    primary: ClassVar[str] = "f1"

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self._names: tuple[str, ...] = ()

    def read(
        self,
        dataset: DatasetSpec,
        paths: Mapping[str, Path],
        *,
        seed: int,
        recorded: Sequence[str] = (),
        slices: Sequence[str] = (),
    ) -> Data:
        """Raises `JobFailure` with the code not_words, bad_tags, one_label_only, too_many_labels, or as `read_table`
        and `split_rows` say."""
        warnings: Warnings = []
        columns = {self.task.tokens: "/task/tokens", self.task.tags: "/task/tags"}
        table: Table[list[str]] = read_table(
            dataset,
            paths,
            columns,
            self._parse,
            recorded=recorded,
            slices=slices,
            warnings=warnings,
            what="words",
        )
        names = _names({tag for tags in table.targets if tags is not None for tag in tags})
        self._names = names
        numbers = {name: number for number, name in enumerate(names)}
        tags = [
            np.full(len(item.words), -1, np.int64)
            if found is None
            else np.array([numbers[tag] for tag in found], np.int64)
            for item, found in zip(table.inputs, table.targets, strict=True)
            if isinstance(item, Words)
        ]
        # Drawn so that every side has its share of rows with an entity.
        strata = np.array(
            [-1 if found is None else int(any(tag != OUTSIDE for tag in found)) for found in table.targets], np.int64
        )
        rows = split_rows(dataset, table, strata, seed=seed, warnings=warnings)
        taught = {int(number) for row in rows["train"] for number in set(tags[row].tolist())} - {-1}
        warn_of_untaught(taught, names, warnings)
        spelled = [None if found is None else json.dumps(found, ensure_ascii=False) for found in table.targets]
        return sides(
            table,
            rows,
            targets=lambda at: [tags[row] for row in at],
            spelled=spelled,
            labels=names,
            warnings=warnings,
        )

    def template(self) -> str:
        return f"token-classification/1 max_length={self.task.max_length}"

    def targets(self, split: Split, encoded: Encoded) -> Tensor:
        """int64 (N, W) of the longest row; -1 where a word has no tag or was cut off."""
        width = max((len(tags) for tags in split.targets), default=1)
        found = np.full((len(split), max(1, width)), -1, np.int64)
        for row, tags in enumerate(split.targets):
            there = encoded.places[row] >= 0 if encoded.places is not None else np.ones(len(tags), np.bool_)
            found[row, : len(tags)] = np.where(there, tags, -1)
        return torch.from_numpy(found)

    # Answers.

    def predictions(self, answers: Answers, encoded: Encoded, inputs: Sequence[Input]) -> Tags:
        del encoded
        found = []
        for row in range(len(inputs)):
            logits = answers[row]
            known = np.asarray(np.isfinite(logits).all(axis=1), np.bool_)
            best = np.where(known[:, np.newaxis], logits, 0).argmax(axis=1)
            found.append(np.where(known, best, -1).astype(np.int64))
        return found

    def scores(self, predictions: Tags, split: Split) -> dict[str, float]:
        """Entity-level `f1`, `precision`, `recall`; `accuracy` over words. A word that was cut off is no entity."""
        rows = np.flatnonzero(split.labelled)
        if not len(rows):
            raise ValueError("no row has tags to score against")
        right, predicted, true = self._counts(predictions, split, rows).sum(axis=0)
        words = np.concatenate([split.targets[row] for row in rows])
        answers = np.concatenate([predictions[row] for row in rows])
        return {
            "f1": float(2 * right / max(predicted + true, 1)),
            "precision": float(right / max(predicted, 1)),
            "recall": float(right / max(true, 1)),
            "accuracy": float((words == answers).mean()) if len(words) else 0.0,
        }

    def statistics(self, predictions: Tags, split: Split) -> NDArray[np.float64]:
        """Of each row the entities that are right, predicted, and true."""
        return self._counts(predictions, split, range(len(split)))

    def metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)

    def right(self, predictions: Tags, split: Split) -> NDArray[np.bool_]:
        same = [np.array_equal(one, two) for one, two in zip(predictions, split.targets, strict=True)]
        return split.labelled & np.array(same, np.bool_)

    def same(self, first: Tags, second: Tags) -> NDArray[np.bool_]:
        return np.array([np.array_equal(one, two) for one, two in zip(first, second, strict=True)], np.bool_)

    def chance(self, split: Split, labels: Sequence[str]) -> float:
        del split, labels
        return 0.0

    def constant(self, split: Split, labels: Sequence[str]) -> dict[str, float] | None:
        """Always the same tag finds no entity."""
        del split, labels
        return None

    def per_class(self, predictions: Tags, split: Split, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Entity type by entity type."""
        del labels
        counts: dict[str, list[int]] = {}
        for row in np.flatnonzero(split.labelled):
            found, true = self._entities(predictions[row]), self._entities(split.targets[row])
            for place, entities in enumerate((found & true, found, true)):
                for kind, _, _ in entities:
                    counts.setdefault(kind, [0, 0, 0])[place] += 1
        return [
            {
                "label": kind,
                "precision": right / max(predicted, 1),
                "recall": right / max(true, 1),
                "f1": 2 * right / max(predicted + true, 1),
                "support": true,
            }
            for kind, (right, predicted, true) in sorted(counts.items())
        ]

    def shown(self, predictions: Tags, row: int, labels: Sequence[str]) -> Any:
        return [labels[number] if number >= 0 else None for number in predictions[row].tolist()]

    def truth(self, split: Split, row: int, labels: Sequence[str]) -> Any:
        return self.shown(split.targets, row, labels) if split.labelled[row] else None

    def _counts(self, predictions: Tags, split: Split, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        counts = []
        for row in rows:
            found, true = self._entities(predictions[row]), self._entities(split.targets[row])
            counts.append((len(found & true), len(found), len(true)))
        return np.array(counts, np.float64).reshape(-1, 3)

    def _entities(self, tags: NDArray[np.int64]) -> set[tuple[str, int, int]]:
        return set(spans_of_tags([self._names[number] if number >= 0 else OUTSIDE for number in tags.tolist()]))

    # Reading.

    def _parse(self, table: pa.Table) -> tuple[list[Input | None], list[list[str] | None]]:
        words = _lists(table.column(self.task.tokens), self.task.tokens, "not_words", "/task/tokens")
        tags = _lists(table.column(self.task.tags), self.task.tags, "bad_tags", "/task/tags")
        for row, (one, two) in enumerate(zip(words, tags, strict=True)):
            if one is not None and two is not None and len(one) != len(two):
                raise JobFailure(
                    f"row {row} has {len(one)} words and {len(two)} tags",
                    code="bad_tags",
                    hint="give each word one tag; a row without tags has null",
                    pointer="/task/tags",
                )
        inputs: list[Input | None] = [Words(tuple(one)) if one and any(map(str.strip, one)) else None for one in words]
        return inputs, [None if two is None else [tag.strip() or OUTSIDE for tag in two] for two in tags]


def _lists(column: pa.ChunkedArray, name: str, code: str, pointer: str) -> list[list[str] | None]:
    """Lists of texts, or of texts with JSON lists; None where a row is null or blank."""
    column = plain(column)
    rows: list[Any] = column.to_pylist()
    if is_text(column.type):
        rows = [_from_json(text) for text in rows]
    elif not is_list(column.type) and not pa.types.is_null(column.type):
        raise _bad(f"the column {name!r} holds {column.type}, not lists of texts", code, pointer)
    for row, one in enumerate(rows):
        if one is not None and not (isinstance(one, list) and all(isinstance(value, str) for value in one)):
            raise _bad(f"row {row} of the column {name!r} is not a list of texts", code, pointer)
    return rows


def _from_json(text: str | None) -> Any:
    if text is None or not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _bad(message: str, code: str, pointer: str) -> JobFailure:
    hint = 'upload JSON lines or Parquet with lists such as ["Ada", "Lovelace"]; a CSV may carry them as JSON'
    return JobFailure(message, code=code, hint=hint, pointer=pointer)


def _names(tags: set[str]) -> tuple[str, ...]:
    if len(tags) < 2:
        raise JobFailure(
            f"the tags have {'only one value' if tags else 'no value at all'}; there is nothing to tell apart",
            code="one_label_only",
            hint="check that it is the column with the tags",
            pointer="/task/tags",
        )
    if len(tags) > MAX_LABELS:
        raise JobFailure(
            f"there are {len(tags)} different tags, more than {MAX_LABELS}",
            code="too_many_labels",
            hint="check that it is the column with the tags",
            pointer="/task/tags",
        )
    return tuple(sorted(tags, key=lambda tag: (tag != OUTSIDE, tag)))
