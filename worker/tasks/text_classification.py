"""One label of two or more for a text: reads rows, tokenizes them, and scores logits.

Does not know teachers, students or training. N rows, C labels.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

from models.errors import JobFailure
from models.specs import DatasetSpec, SplitByColumn, SplitByDataset, SplitByShare, TextClassification
from worker import data
from worker.data import Encoded, Rows

# More distinct values than this are no labels but numbers, names or another text.
MAX_LABELS = 1000
_CHUNK = 8192
_INTEGER = re.compile(r"-?\d{1,18}")
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Rows of one side. `labels` (N,) are numbers into `Data.labels`; -1 is a row without a label."""

    texts: list[str]
    labels: Rows

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Data:
    """What a job is trained and judged on.

    `hashes` has the SHA-256 of the rows of `train`, `validation` and `test`, texts and label names in order. `warnings`
    are pairs of a stable code and a sentence.
    """

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    hashes: dict[str, str]
    warnings: list[tuple[str, str]]


@dataclass(frozen=True)
class _Table:
    """Rows as they were read, those without a text left out."""

    texts: list[str]
    labels: list[str | None]
    parts: list[str]
    """Of each row `train`, `validation` or `test`; empty where the dataset does not say."""


def read(task: TextClassification, dataset: DatasetSpec, paths: Mapping[str, Path], *, seed: int) -> Data:
    """The rows of `dataset`, whose ids `paths` maps to Parquet files, split as it says.

    Rows that are equal after normalisation never stand on both sides: a draw keeps them together, and where the caller
    has split already, training rows that leak into validation or test (and validation rows into test) are dropped.
    Raises `JobFailure` with the code missing_column, not_text, bad_label, bad_split_column, one_label_only,
    too_many_labels, too_few_rows or unlabelled_rows.
    """
    warnings: list[tuple[str, str]] = []
    table = _read_table(task, dataset, paths, warnings)
    labels = _label_names(table.labels)
    numbers = {name: number for number, name in enumerate(labels)}
    strata = np.fromiter((-1 if label is None else numbers[label] for label in table.labels), np.int64)
    groups = data.groups_of(table.texts)
    if isinstance(dataset, SplitByShare):
        rows = dict(
            zip(
                _PARTS,
                data.split(groups, strata, validation=dataset.validation, test=dataset.test, seed=seed),
                strict=True,
            )
        )
    else:
        rows = _given_split(table.parts, groups, strata, warnings)
    rows["train"] = rows["train"][data.limited(strata[rows["train"]], dataset.limit, seed=seed)]
    _check_parts(rows, strata)
    untaught = sorted(set(range(len(labels))) - set(strata[rows["train"]].tolist()))
    if untaught and (strata[rows["train"]] >= 0).any():
        names = ", ".join(repr(labels[number]) for number in untaught[:10])
        warnings.append(("label_missing_in_train", f"no training row has the label {names}"))
    splits = {part: Split([table.texts[row] for row in rows[part]], strata[rows[part]]) for part in _PARTS}
    hashes = {
        part: data.digest(side.texts, [labels[number] if number >= 0 else None for number in side.labels])
        for part, side in splits.items()
    }
    return Data(splits["train"], splits["validation"], splits["test"], labels, hashes, warnings)


def template(task: TextClassification) -> str:
    """What decides, beside the text itself, what a teacher is shown of a row; part of a signal's key."""
    return f"text-classification/1 max_length={task.max_length}"


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> Encoded:
    """`texts` as token ids, special tokens included, cut at `max_length`, not padded.

    `tokenizer` is a fast transformers tokenizer; its own truncation and padding are left switched off.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length)
    ids: list[NDArray[np.int32]] = []
    try:
        for start in range(0, len(texts), _CHUNK):
            found = backend.encode_batch_fast(list(texts[start : start + _CHUNK]))
            ids += [np.array(encoding.ids, np.int32) for encoding in found]
    finally:
        backend.no_truncation()
    lengths = np.fromiter((len(row) for row in ids), np.int64, len(ids))
    return Encoded(ids, lengths, int(tokenizer.pad_token_id))


def scores(logits: NDArray[np.floating[Any]], targets: Rows) -> dict[str, float]:
    """`accuracy` and `macro_f1` of `logits` (N, C) against `targets` (N,); rows with the target -1 are left out.

    Macro-F1 is the mean over the labels that occur among the targets or the answers. Raises `ValueError` where no row
    has a label.
    """
    labelled = targets >= 0
    if not labelled.any():
        raise ValueError("no row has a label to score against")
    truth, answers = targets[labelled], logits[labelled].argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "macro_f1": float(f1_score(truth, answers, average="macro", zero_division=0)),
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_table(
    task: TextClassification, dataset: DatasetSpec, paths: Mapping[str, Path], warnings: list[tuple[str, str]]
) -> _Table:
    columns = {task.text: "/task/text", task.label: "/task/label"}
    match dataset:
        case SplitByShare():
            sources = [(dataset.id, "")]
        case SplitByColumn():
            columns[dataset.split] = "/dataset/split"
            sources = [(dataset.id, "")]
        case SplitByDataset():
            sources = [(dataset.train, "train"), (dataset.validation, "validation"), (dataset.test, "test")]
        case _:
            assert_never(dataset)
    texts: list[str | None] = []
    labels: list[str | None] = []
    parts: list[str] = []
    for identifier, part in sources:
        table = data.read_columns(paths[identifier], columns)
        texts += _texts(table.column(task.text), task.text)
        labels += _labels(table.column(task.label), task.label)
        parts += _parts(table.column(dataset.split)) if isinstance(dataset, SplitByColumn) else [part] * len(table)
    kept = [row for row, text in enumerate(texts) if text is not None and text.strip()]
    if len(kept) < len(texts):
        warnings.append(("empty_text", f"{len(texts) - len(kept)} rows without a text were dropped"))
    return _Table([texts[row] or "" for row in kept], [labels[row] for row in kept], [parts[row] for row in kept])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _texts(column: pa.ChunkedArray, name: str) -> list[str | None]:
    column = _plain(column)
    if not _is_string(column.type) and not pa.types.is_null(column.type):
        raise JobFailure(f"the column {name!r} holds {column.type}, not text", code="not_text", pointer="/task/text")
    found: list[str | None] = column.to_pylist()
    return found


def _labels(column: pa.ChunkedArray, name: str) -> list[str | None]:
    """The labels' names: text without the white space around it, integers in decimal, booleans as true and false."""
    column = _plain(column)
    values = column.to_pylist()
    if _is_string(column.type):
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
        hint="for numbers to be predicted use a regression task",
        pointer="/task/label",
    )


def _parts(column: pa.ChunkedArray) -> list[str]:
    values = [value.strip().lower() if isinstance(value, str) else value for value in _plain(column).to_pylist()]
    strange = {value for value in values if value not in _PARTS}
    if strange:
        shown = ", ".join(sorted(repr(value) for value in strange)[:5])
        raise JobFailure(
            f"the split column must say train, validation or test in every row; it also says {shown}",
            code="bad_split_column",
            pointer="/dataset/split",
        )
    return values


def _label_names(labels: Sequence[str | None]) -> tuple[str, ...]:
    names = {label for label in labels if label is not None}
    if len(names) < 2:
        raise JobFailure(
            f"the label column has {'only one value' if names else 'no value at all'}; there is nothing to tell apart",
            code="one_label_only",
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


# --- splitting --------------------------------------------------------------------------------------------------------


def _given_split(parts: Sequence[str], groups: Rows, strata: Rows, warnings: list[tuple[str, str]]) -> dict[str, Rows]:
    side = np.array(parts)
    rows = {part: np.flatnonzero(side == part) for part in _PARTS}
    unlabelled = [part for part in ("validation", "test") if (strata[rows[part]] < 0).any()]
    if unlabelled:
        count = int((strata[rows[unlabelled[0]]] < 0).sum())
        raise JobFailure(
            f"{count} {unlabelled[0]} rows have no label; only training rows may lack one",
            code="unlabelled_rows",
            pointer="/dataset",
        )
    judged = groups[rows["test"]]
    for part in ("validation", "train"):
        leaks = np.isin(groups[rows[part]], judged)
        if leaks.any():
            name = "training" if part == "train" else part
            where = "validation or test" if part == "train" else "test"
            warnings.append(
                (
                    "leaking_rows_dropped",
                    f"{int(leaks.sum())} {name} rows whose text also stands among the {where} rows were dropped",
                )
            )
            rows[part] = rows[part][~leaks]
        judged = np.concatenate([judged, groups[rows[part]]])
    return rows


def _check_parts(rows: Mapping[str, Rows], strata: Rows) -> None:
    for part in _PARTS:
        if not len(rows[part]):
            name = "training" if part == "train" else part
            raise JobFailure(f"there is no {name} row", code="too_few_rows", pointer="/dataset")
    if (strata[rows["test"]] < 0).any() or (strata[rows["validation"]] < 0).any():
        raise AssertionError("a row without a label was drawn for validation or test")
