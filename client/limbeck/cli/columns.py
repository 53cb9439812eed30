"""Which columns of a local file a task is likely to read. A guess, for a file that a person looks at afterwards."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from limbeck.cli.jobfile import PLACES, TaskKind
from limbeck.errors import LimbeckError

_ROWS = 500
_LONGEST_CELL = 10_000_000
_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "content", "body", "message", "tweet", "review", "input", "title"),
    "label": ("label", "labels", "class", "category", "sentiment", "intent", "topic", "target"),
    "target": ("target", "score", "value", "rating", "similarity", "label"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels"),
    "question": ("question", "query"),
    "context": ("context", "passage", "document"),
    "answers": ("answers", "answer"),
}
"""What a column of each kind is often called, the likeliest first."""


def guess(file: Path, kind: TaskKind | None) -> tuple[TaskKind, dict[str, str]]:
    """The kind of task (unless it is given), and the column for each of its places.

    Raises `LimbeckError` where the file cannot be read, or has no column for some place.
    """
    columns = _columns(file)
    found = kind or _kind(columns)
    taken: dict[str, str] = {}
    for place in PLACES[found]:
        left = {name: values for name, values in columns.items() if name not in taken.values()}
        column = _column(place, left)
        if column is None:
            names = ", ".join(columns) or "none"
            raise LimbeckError(
                f"{file} has no column for the {place} of {found}; its columns are: {names}",
                hint="give another --task, or write the column's name into the file yourself",
            )
        taken[place] = column
    return found, taken


def _kind(columns: Mapping[str, Sequence[Any]]) -> TaskKind:
    if _column("answers", columns) and any(_are_answers(values) for values in columns.values()):
        return "question-answering"
    if sum(_are_lists(values) for values in columns.values()) >= 2:
        return "token-classification"
    texts = [name for name, values in columns.items() if not _are_numbers(values)]
    # Whole numbers may be the numbers of classes; broken ones are none.
    broken = [name for name, values in columns.items() if _are_numbers(values) and not _are_whole(values)]
    return "text-regression" if len(texts) == 1 and broken else "text-classification"


def _column(place: str, columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The likeliest column for a place: by its name, else by what is in it."""
    fits = _FITS.get(place, _are_texts)
    fitting = [name for name, values in columns.items() if fits(values)]
    names = {name.lower(): name for name in fitting}
    for wanted in _NAMES[place]:
        if wanted in names:
            return names[wanted]
    if place == "label":
        # Few different values, each of them often.
        counts = {name: len({str(value) for value in columns[name]}) for name in fitting}
        few = [name for name in fitting if 2 <= counts[name] <= max(2, len(columns[name]) // 4)]
        return min(few, key=lambda name: counts[name]) if few else None
    if place in {"text", "context"}:
        return max(fitting, key=lambda name: _length(columns[name]), default=None)
    return fitting[0] if fitting else None


def _columns(file: Path) -> dict[str, list[Any]]:
    """The values of each column in the first rows, empty ones left out."""
    columns: dict[str, list[Any]] = {}
    try:
        for row in islice(_rows(file), _ROWS):
            for name, value in row.items():
                values = columns.setdefault(name, [])
                if value not in (None, ""):
                    values.append(value)
    except OSError as error:
        raise LimbeckError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise LimbeckError(
            f"{file} cannot be read: {error}", hint="limbeck datasets upload says more; --encoding names its encoding"
        ) from error
    if not columns:
        raise LimbeckError(f"{file} has no rows")
    return columns


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    suffix = file.suffix.lower()
    if suffix in {".jsonl", ".ndjson", ".json"}:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("a line is not a JSON object")
                    yield row
    elif suffix in {".csv", ".tsv", ".txt"}:
        csv.field_size_limit(min(sys.maxsize, _LONGEST_CELL))
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ",", restkey="")
            yield from ({name: value for name, value in row.items() if name} for row in rows)
    else:
        raise LimbeckError(
            f"{file} is neither CSV, TSV nor JSONL, so that its columns cannot be read here",
            hint="leave --dataset out, and write file and columns into the job file yourself",
        )


def _are_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(_number(value) is not None for value in values)


def _are_whole(values: Sequence[Any]) -> bool:
    return all((_number(value) or 0.0).is_integer() for value in values)


def _are_texts(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _are_lists(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, list) for value in values)


def _are_answers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) and "text" in value for value in values)


def _may_be_labels(values: Sequence[Any]) -> bool:
    """Of each row one label, or a list of them."""
    return all(isinstance(item, str) for value in values if isinstance(value, list) for item in value)


_FITS: Mapping[str, Callable[[Sequence[Any]], bool]] = {
    "tokens": _are_lists,
    "tags": _are_lists,
    "answers": _are_answers,
    "target": _are_numbers,
    "label": _may_be_labels,
}
"""What the values of a column must be to stand at a place; elsewhere, texts."""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _length(values: Sequence[Any]) -> float:
    return sum(len(str(value)) for value in values) / max(1, len(values))
