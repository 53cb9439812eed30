"""JSON lines. Strings, integers, floats, booleans, lists of strings and answers as in SQuAD stay so.

Integers among floats are floats, and so are the items of a list of numbers, be they integers or not.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import pyarrow as pa

from app.uploads.rows import (
    ANSWERS,
    BATCH_CHARACTERS,
    BATCH_ROWS,
    BOOLEAN,
    EMPTY_LIST,
    FLOAT,
    INTEGER,
    LONGEST_CELL,
    MOST_COLUMNS,
    NUMBERS,
    STRING,
    STRINGS,
    BadLines,
    Remark,
    check_answers,
    check_names,
    check_rows,
    empty,
    named,
)
from app.uploads.text import LineError, Text
from models.errors import TooLarge


class JsonLines:
    """One JSON object a line; blank lines are passed over."""

    def __init__(self, text: Text) -> None:
        self.warnings: list[Remark] = []
        self._text = text

    def scan(self, max_rows: int) -> tuple[pa.Schema, int]:
        types: dict[str, tuple[pa.DataType | None, int]] = {}  # and the line that settled it
        bad = BadLines()
        rows = 0
        for line, row in self._read(bad):
            rows += 1
            check_rows(rows, max_rows)
            for name, value in row.items():
                known, since = types.get(name, (None, line))
                if value is None:
                    types.setdefault(name, (None, line))
                    continue
                try:
                    found = _json_type(value)
                except ValueError as error:
                    bad.add(line, f"{named(name)} {error}")
                    continue
                both = found if known is None else _common(known, found)
                if both is None:
                    bad.add(line, f"{named(name)} is {_word(found)}, and was {_word(known)} in line {since}")
                elif known is None or (known == EMPTY_LIST and both != known):
                    types[name] = (both, line)
                else:
                    types[name] = (both, since)
            if len(types) > MOST_COLUMNS:
                raise TooLarge(f"more than {MOST_COLUMNS} columns", code="too_large")
        bad.tell()
        if not rows:
            empty("the file is empty")
        if not types:
            empty("no line has any field")
        check_names(list(types))
        return pa.schema([pa.field(name, _settled(kind)) for name, (kind, _) in types.items()]), rows

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        rows: list[dict[str, Any]] = []
        before = 0
        with self._text.opened() as lines:
            for line in lines:
                if line.isspace():
                    continue
                rows.append(json.loads(line))
                before += len(line)
                lines.next_row()
                if len(rows) >= BATCH_ROWS or before >= BATCH_CHARACTERS:
                    yield _json_batch(rows, schema)
                    rows, before = [], 0
        if rows:
            yield _json_batch(rows, schema)

    def _read(self, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._text.opened() as lines:
            while True:
                try:
                    line = next(lines, None)
                except LineError as error:
                    bad.add(error.line, error.message)
                    break
                if line is None:
                    break
                lines.next_row()
                if line.isspace():
                    continue
                try:
                    row = _JSON.decode(line.strip())
                except json.JSONDecodeError as error:
                    bad.add(lines.number, f"not valid JSON ({error.msg} at column {error.colno})")
                except (ValueError, RecursionError) as error:
                    why = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
                    bad.add(lines.number, f"not valid JSON ({why})")
                else:
                    if isinstance(row, dict):
                        yield lines.number, row
                    else:
                        bad.add(lines.number, f'an object such as {{"text": …}} is expected, not {_word_of(row)}')


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constant)


def _json_batch(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for column in schema:
        values: list[Any] = [row.get(column.name) for row in rows]
        if column.type == FLOAT:
            values = [None if value is None else float(value) for value in values]
        elif column.type == NUMBERS:
            values = [None if value is None else [float(item) for item in value] for value in values]
        columns.append(pa.array(values, column.type))
    return pa.record_batch(columns, schema=schema)


def _common(known: pa.DataType, found: pa.DataType) -> pa.DataType | None:
    """The type of a column that holds both; None if there is none."""
    if found == known:
        return known
    if {found, known} == {INTEGER, FLOAT}:
        return FLOAT
    if EMPTY_LIST in (found, known):
        other = known if found == EMPTY_LIST else found
        return other if other in (STRINGS, NUMBERS) else None
    return None


def _settled(kind: pa.DataType | None) -> pa.DataType:
    return STRING if kind is None else STRINGS if kind == EMPTY_LIST else kind


def _json_type(value: object) -> pa.DataType:
    """Raises ValueError with the rest of a sentence that begins with the column's name."""
    match value:
        case bool():
            return BOOLEAN
        case int():
            if not -(2**63) <= value < 2**63:
                raise ValueError("does not fit 64 bits")
            return INTEGER
        case float():
            if not math.isfinite(value):
                raise ValueError("is too large for a number")
            return FLOAT
        case str():
            _check_text(value)
            return STRING
        case list():
            return _list_type(value)
        case dict():
            check_answers(value)
            for text in value["text"]:
                _check_text(text)
            return ANSWERS
        case _:
            raise TypeError(type(value))  # JSON has nothing else


def _list_type(items: list[Any]) -> pa.DataType:
    """Raises ValueError as `_json_type` does."""
    if not items:
        return EMPTY_LIST
    if all(isinstance(item, str) for item in items):
        for item in items:
            _check_text(item)
        return STRINGS
    if not all(type(item) in (int, float) for item in items):
        raise ValueError("is a list of something other than texts, or than numbers")
    if not all(_is_finite(item) for item in items):
        raise ValueError("has an item that is too large for a number")
    return NUMBERS


def _is_finite(number: float) -> bool:
    """Also of an integer, which may be more than a float can be."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _check_text(text: str) -> None:
    if len(text) > LONGEST_CELL:
        raise ValueError(f"has more than {LONGEST_CELL // 1024**2} million characters")
    if "\0" in text:
        raise ValueError("has a NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("has half of a surrogate pair, which is no character") from None


def _word_of(value: object) -> str:
    """Of a line that is no object, and whose value nobody has checked."""
    match value:
        case None:
            return "null"
        case list():
            return "a list"
        case str():
            return _word(STRING)
        case bool():
            return _word(BOOLEAN)
        case _:
            return _word(FLOAT)


def _word(kind: pa.DataType) -> str:
    return {
        STRING: "text",
        INTEGER: "an integer",
        FLOAT: "a number",
        BOOLEAN: "true or false",
        STRINGS: "a list of texts",
        NUMBERS: "a list of numbers",
        EMPTY_LIST: "an empty list",
        ANSWERS: "an object with answers",
    }[kind]
