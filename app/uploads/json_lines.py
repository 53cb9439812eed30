"""JSON lines. Strings, integers, floats, booleans and lists of strings stay so; integers among floats are floats."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import pyarrow as pa

from app.uploads.rows import (
    BATCH_CHARACTERS,
    BATCH_ROWS,
    BOOLEAN,
    FLOAT,
    INTEGER,
    LONGEST_CELL,
    MOST_COLUMNS,
    STRING,
    STRINGS,
    BadLines,
    Remark,
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
                if known is None or found == known:
                    types[name] = (found, since if known is not None else line)
                elif {found, known} == {INTEGER, FLOAT}:
                    types[name] = (FLOAT, since)
                else:
                    bad.add(line, f"{named(name)} is {_word(found)}, and was {_word(known)} in line {since}")
            if len(types) > MOST_COLUMNS:
                raise TooLarge(f"more than {MOST_COLUMNS} columns", code="too_large")
        bad.tell()
        if not rows:
            empty("the file is empty")
        if not types:
            empty("no line has any field")
        check_names(list(types))
        return pa.schema([pa.field(name, kind or STRING) for name, (kind, _) in types.items()]), rows

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
        columns.append(pa.array(values, column.type))
    return pa.record_batch(columns, schema=schema)


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
        case list() if all(isinstance(item, str) for item in value):
            for item in value:
                _check_text(item)
            return STRINGS
        case list():
            raise ValueError("is a list of something other than text")
        case _:
            raise ValueError("is an object; a value is text, a number, true, false, null or a list of texts")


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
    match value:
        case None:
            return "null"
        case list():
            return "a list"
        case _:
            return _word(_json_type(value))


def _word(kind: pa.DataType) -> str:
    return {
        STRING: "text",
        INTEGER: "an integer",
        FLOAT: "a number",
        BOOLEAN: "true or false",
        STRINGS: "a list of texts",
    }[kind]
