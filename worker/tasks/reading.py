"""What all kinds of task share of reading: rows from Parquet files, their sides, and answers recorded beside them.

A kind says which columns it needs and makes inputs and targets of them; from there on a row is an input with a group
(inputs that are equal after normalisation) and a stratum (a number to draw evenly by, -1 for a row without a label).
Knows no label, network or score.

N rows, C numbers of a recorded answer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, assert_never

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.errors import JobFailure
from models.inputs import Input, Pair, Question, Words, canonical
from models.specs import DatasetSpec, SplitByColumn, SplitByDataset, SplitByShare
from worker import data
from worker.data import Rows
from worker.tasks.base import Data, Split, Targets

PARTS = ("train", "validation", "test")

T = TypeVar("T")
Warnings = list[tuple[str, str]]
Parse = Callable[[pa.Table], tuple[Sequence[Input | None], Sequence[T | None]]]
"""Inputs and targets of one file's rows: None for an input that is empty, None for a row without a label."""


@dataclass(frozen=True)
class Table(Generic[T]):
    """N rows as they were read, those without an input left out."""

    inputs: list[Input]
    targets: list[T | None]
    """None: the row has no label."""
    parts: list[str]
    """Of each row `train`, `validation` or `test`; empty where the dataset does not say."""
    recorded: dict[str, NDArray[np.float32]]
    """(N, C) of each column of recorded answers, NaN in the rows that have none."""
    slices: dict[str, list[str | None]]
    """Of each column that rows are told apart by its values as texts, None in the rows that have none."""


# --- from files to rows -----------------------------------------------------------------------------------------------


def read_table(
    dataset: DatasetSpec,
    paths: Mapping[str, Path],
    columns: Mapping[str, str],
    parse: Parse[T],
    *,
    recorded: Sequence[str] = (),
    slices: Sequence[str] = (),
    warnings: Warnings,
    what: str = "a text",
) -> Table[T]:
    """The rows of all files of `dataset`, whose ids `paths` maps to Parquet files.

    `columns` maps each name that `parse` needs to the pointer of who asked for it; `recorded` names columns with lists
    of numbers, `slices` those with one value a row. Rows without an input are dropped with the warning `empty_text`;
    `what` says what they lack. Raises `JobFailure` with the code missing_column, dataset_unreadable, bad_split_column,
    bad_recorded, bad_slice_column or one of `parse`'s.
    """
    sliced = {name: f"/evaluation/slices/{place}" for place, name in enumerate(slices)}
    wanted = {**sliced, **dict.fromkeys(recorded, "/teachers"), **columns}
    match dataset:
        case SplitByShare():
            sources = [(dataset.id, "")]
        case SplitByColumn():
            wanted.setdefault(dataset.split, "/dataset/split")
            sources = [(dataset.id, "")]
        case SplitByDataset():
            sources = [(dataset.train, "train"), (dataset.validation, "validation"), (dataset.test, "test")]
        case _:
            assert_never(dataset)
    inputs: list[Input | None] = []
    targets: list[T | None] = []
    parts: list[str] = []
    answers: dict[str, list[NDArray[np.float32]]] = {name: [] for name in recorded}
    values: dict[str, list[str | None]] = {name: [] for name in slices}
    for identifier, part in sources:
        table = data.read_columns(paths[identifier], wanted)
        found = parse(table)
        inputs += found[0]
        targets += found[1]
        parts += _parts(table.column(dataset.split)) if isinstance(dataset, SplitByColumn) else [part] * len(table)
        for name, files in answers.items():
            files.append(_recorded(table.column(name), name))
        for name, pointer in sliced.items():
            values[name] += _values(table.column(name), name, pointer)
    kept = [(row, one) for row, one in enumerate(inputs) if one is not None]
    if len(kept) < len(inputs):
        warnings.append(("empty_text", f"{len(inputs) - len(kept)} rows without {what} were dropped"))
    rows = [row for row, _ in kept]
    return Table(
        [one for _, one in kept],
        [targets[row] for row in rows],
        [parts[row] for row in rows],
        {name: _joined(files, name)[rows] for name, files in answers.items()},
        {name: [told[row] for row in rows] for name, told in values.items()},
    )


def text_columns(task: Any) -> dict[str, str]:
    """The columns of a text or a pair of texts; `task` is a `TextClassification` or a `TextRegression`."""
    pair = {} if task.text_pair is None else {task.text_pair: "/task/text_pair"}
    return {**pair, task.text: "/task/text"}


def text_inputs(table: pa.Table, task: Any) -> list[Input | None]:
    """A `str` of each row, or a `Pair` where the task has pairs; None where a text is empty."""
    first = texts(table.column(task.text), task.text, "/task/text")
    if task.text_pair is None:
        return list(first)
    second = texts(table.column(task.text_pair), task.text_pair, "/task/text_pair")
    return [
        None if one is None or other is None else Pair(one, other) for one, other in zip(first, second, strict=True)
    ]


def texts(column: pa.ChunkedArray, name: str, pointer: str) -> list[str | None]:
    """The texts of a column, None for those that are null or blank. Raises `JobFailure` (`not_text`)."""
    column = plain(column)
    if not is_text(column.type) and not pa.types.is_null(column.type):
        raise JobFailure(
            f"the column {name!r} holds {column.type}, not text",
            code="not_text",
            hint="name a column with texts",
            pointer=pointer,
        )
    return [value if value is not None and value.strip() else None for value in column.to_pylist()]


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` with its values spelled out, where it was a dictionary's numbers."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _parts(column: pa.ChunkedArray) -> list[str]:
    values = [value.strip().lower() if isinstance(value, str) else value for value in plain(column).to_pylist()]
    strange = {repr(value) for value in values if value not in PARTS}
    if strange:
        raise JobFailure(
            "the split column must say train, validation or test in every row; it also says "
            + ", ".join(sorted(strange)[:5]),
            code="bad_split_column",
            hint="name another column, or let the split be drawn with validation and test as shares",
            pointer="/dataset/split",
        )
    return values


def _values(column: pa.ChunkedArray, name: str, pointer: str) -> list[str | None]:
    """One value a row as text, without the white space around it; None for what is null, blank or no number."""
    column = plain(column)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise JobFailure(
            f"the column {name!r} holds {column.type}; rows are told apart by one text, number or date each",
            code="bad_slice_column",
            hint="name a column with one value in a row, such as a language or a source",
            pointer=pointer,
        )
    values = [None if value is None or value != value else value for value in column.to_pylist()]  # noqa: PLR0124 - NaN
    if pa.types.is_boolean(column.type):
        return [None if value is None else str(value).lower() for value in values]
    return [None if value is None else str(value).strip() or None for value in values]


# --- recorded answers -------------------------------------------------------------------------------------------------


def _recorded(column: pa.ChunkedArray, name: str) -> NDArray[np.float32]:
    """(N, C) of a column of lists of numbers, or of texts with JSON lists; NaN where a row is null or blank."""
    column = plain(column)
    rows: list[Any] = column.to_pylist()
    if is_text(column.type):
        rows = [_from_json(text, row, name) for row, text in enumerate(rows)]
    elif not is_list(column.type) and not pa.types.is_null(column.type):
        raise _bad_recorded(f"the column {name!r} holds {column.type}, not lists of numbers")
    width = max((len(one) for one in rows if one is not None), default=0)
    found = np.full((len(rows), width), np.nan, np.float32)
    for row, one in enumerate(rows):
        if one is None:
            continue
        if len(one) != width or not width:
            raise _bad_recorded(f"row {row} of the column {name!r} has {len(one)} numbers; others have {width}")
        try:
            with np.errstate(over="ignore"):
                found[row] = [_number(value) for value in one]
        except (TypeError, OverflowError) as error:
            raise _bad_recorded(f"row {row} of the column {name!r} holds something that is no number") from error
        if not np.isfinite(found[row]).all():
            raise _bad_recorded(f"row {row} of the column {name!r} holds a number that is not finite")
    return found


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _from_json(text: str | None, row: int, name: str) -> list[Any] | None:
    if text is None or not text.strip():
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad_recorded(f"row {row} of the column {name!r} is not a JSON list of numbers") from error
    if value is not None and not isinstance(value, list):
        raise _bad_recorded(f"row {row} of the column {name!r} is not a JSON list of numbers")
    return value


def _joined(files: Sequence[NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    """Of several files one array; a file in which no row has an answer takes the others' width."""
    widths = sorted({one.shape[1] for one in files} - {0})
    if len(widths) != 1:
        message = f"its files have {' and '.join(map(str, widths))} numbers a row" if widths else "no row has an answer"
        raise _bad_recorded(f"the column {name!r} cannot be used: {message}")
    return np.concatenate(
        [one if one.shape[1] else np.full((len(one), widths[0]), np.nan, np.float32) for one in files]
    )


def _bad_recorded(message: str) -> JobFailure:
    hint = "give each row a list with one finite number for each label, in one order, or null"
    return JobFailure(message, code="bad_recorded", hint=hint, pointer="/teachers")


# --- from rows to sides -----------------------------------------------------------------------------------------------


def split_rows(
    dataset: DatasetSpec,
    table: Table[Any],
    strata: Rows,
    *,
    seed: int,
    warnings: Warnings,
    of: Callable[[Input], str] = lambda item: canonical(normal(item)),
) -> dict[str, Rows]:
    """The rows of `train`, `validation` and `test`, each in ascending order; `strata` (N,), -1 for no label.

    Rows of which `of` gives the same, by default those that are equal after normalisation, never stand on both sides: a
    draw keeps them together, and where the caller has split already, training rows that leak into validation or test
    (and validation rows into test) are dropped with the warning `leaking_rows_dropped`. Only training rows may lack a
    label. Raises `JobFailure` with the code too_few_rows or unlabelled_rows.
    """
    groups = data.groups_of(of(one) for one in table.inputs)
    if isinstance(dataset, SplitByShare):
        drawn = data.split(groups, strata, validation=dataset.validation, test=dataset.test, seed=seed)
        rows = dict(zip(PARTS, drawn, strict=True))
    else:
        rows = _given_split(table.parts, groups, strata, warnings)
    rows["train"] = rows["train"][data.limited(strata[rows["train"]], dataset.limit, seed=seed)]
    for part in PARTS:
        if not len(rows[part]):
            name = "training" if part == "train" else part
            hint = "every side needs at least one row that stands on no other side"
            raise JobFailure(f"there is no {name} row", code="too_few_rows", hint=hint, pointer="/dataset")
    if (strata[rows["test"]] < 0).any() or (strata[rows["validation"]] < 0).any():
        raise AssertionError("a row without a label was drawn for validation or test")
    return rows


def sides(
    table: Table[Any],
    rows: Mapping[str, Rows],
    *,
    targets: Callable[[Rows], Targets],
    spelled: Sequence[str | None],
    labels: Sequence[str],
    warnings: Warnings,
) -> Data:
    """The rows of each side as a job takes them.

    `targets` gives those of some rows, in the form that the task's kind understands; `spelled` (N,) has each row's
    target as a text for the side's hash, None for a row without a label.
    """
    labelled = np.array([one is not None for one in spelled], np.bool_)
    found = {part: Split([table.inputs[row] for row in at], targets(at), labelled[at]) for part, at in rows.items()}
    hashes = {
        part: data.digest([canonical(one) for one in found[part].inputs], [spelled[row] for row in at])
        for part, at in rows.items()
    }
    recorded = {name: {part: values[at] for part, at in rows.items()} for name, values in table.recorded.items()}
    told = {name: [values[row] for row in rows["test"]] for name, values in table.slices.items()}
    return Data(found["train"], found["validation"], found["test"], tuple(labels), hashes, warnings, recorded, told)


def normal(item: Input) -> Input:
    """`item` with each of its texts in the form in which two count as the same."""
    match item:
        case str():
            return data.normalise(item)
        case Pair(text, pair):
            return Pair(data.normalise(text), data.normalise(pair))
        case Words(words):
            return Words(tuple(map(data.normalise, words)))
        case Question(question, context):
            return Question(data.normalise(question), data.normalise(context))
        case _:
            assert_never(item)


def _given_split(parts: Sequence[str], groups: Rows, strata: Rows, warnings: Warnings) -> dict[str, Rows]:
    side = np.array(parts, dtype=object)
    rows = {part: np.flatnonzero(side == part) for part in PARTS}
    unlabelled = [part for part in ("validation", "test") if (strata[rows[part]] < 0).any()]
    if unlabelled:
        count = int((strata[rows[unlabelled[0]]] < 0).sum())
        raise JobFailure(
            f"{count} {unlabelled[0]} rows have no label; only training rows may lack one",
            code="unlabelled_rows",
            hint="label them, or move them to the training rows",
            pointer="/dataset",
        )
    judged = groups[rows["test"]]
    for part in ("validation", "train"):
        leaks = np.isin(groups[rows[part]], judged)
        if leaks.any():
            name = "training" if part == "train" else part
            where = "validation or test" if part == "train" else "test"
            message = f"{int(leaks.sum())} {name} rows whose text also stands among the {where} rows were dropped"
            warnings.append(("leaking_rows_dropped", message))
            rows[part] = rows[part][~leaks]
        judged = np.concatenate([judged, groups[rows[part]]])
    return rows
