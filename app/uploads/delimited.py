"""Comma-separated and tab-separated text.

Cells are text. A column of nothing but integers (or nothing but numbers) is one of numbers; an empty cell is null.
"""

import csv
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from app.uploads.rows import (
    BATCH_CHARACTERS,
    BATCH_ROWS,
    FLOAT,
    INTEGER,
    LONGEST_CELL,
    STRING,
    BadLines,
    Remark,
    all_true,
    check_names,
    check_rows,
    empty,
)
from app.uploads.text import LineError, Text

# What a number looks like when it is nothing but a number: 007 and 1_000 stay text. 18 digits always fit 64 bits.
_INTEGER = r"^(?:0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^[+-]?(?:[0-9]{1,15}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?$"
_LEADING_ZERO = r"^[+-]?0[0-9]"


class Csv:
    """Comma-separated text by RFC 4180, or tab-separated; quotes may hold line ends."""

    def __init__(self, text: Text, delimiter: str) -> None:
        self.warnings: list[Remark] = []
        self._text = text
        self._delimiter = delimiter

    def scan(self, max_rows: int) -> tuple[pa.Schema, int]:
        self._delimiter = self._find_delimiter()
        header: list[str] = []
        kinds: list[_TextKind] = []
        rows = 0
        for batch in self._read(header):
            rows += len(batch)
            check_rows(rows, max_rows)
            kinds = kinds or [_TextKind() for _ in header]
            for kind, cells in zip(kinds, zip(*batch, strict=True), strict=True):
                kind.see(cells)
        if not rows:
            empty("the file has a header and no rows" if header else "the file is empty")
        return pa.schema([pa.field(name, kind.type()) for name, kind in zip(header, kinds, strict=True)]), rows

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for batch in self._read([]):
            columns = [
                _nulls_for_empty(cells).cast(column.type)
                for column, cells in zip(schema, zip(*batch, strict=True), strict=True)
            ]
            yield pa.record_batch(columns, schema=schema)

    def _find_delimiter(self) -> str:
        with self._text.opened() as lines:
            try:
                first = next(lines, "")
            except LineError:
                return self._delimiter
        if self._delimiter == "," and "," not in first:
            for delimiter, name in ((";", "semicolons"), ("\t", "tabs")):
                if delimiter in first:
                    self.warnings.append(Remark("delimiter", f"the columns are separated by {name}, not by commas"))
                    return delimiter
        return self._delimiter

    def _read(self, header: list[str]) -> Iterator[list[list[str]]]:
        """Rows as they stand, each as long as the header, which is put into `header`."""
        bad = BadLines()
        batch: list[list[str]] = []
        characters = 0
        for line, row in self._rows(bad):
            if not header:
                header.extend(row)
                check_names(header)
            elif len(row) != len(header):
                bad.add(line, f"{len(row)} field{'s'[: len(row) != 1]}, the header has {len(header)}")
            elif not bad.found:
                batch.append(row)
                characters += sum(map(len, row))
                if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                    yield batch
                    batch, characters = [], 0
        bad.tell()
        if batch:
            yield batch

    def _rows(self, bad: BadLines) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not blank, and the line that it begins on."""
        csv.field_size_limit(LONGEST_CELL)  # of this process, and always the same
        with self._text.opened() as lines:
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            while True:
                line = reader.line_num + 1
                try:
                    row = next(reader, None)
                except LineError as error:
                    bad.add(error.line, error.message)
                    return
                except csv.Error as error:
                    bad.add(line, _trouble(str(error)))
                    return  # where the next row begins is now anybody's guess
                lines.next_row()
                if row is None:
                    return
                if row:
                    yield line, row


class _TextKind:
    """What a column of text may still turn out to be."""

    def __init__(self) -> None:
        self._some = False
        self._integer = True
        self._number = True

    def see(self, cells: Sequence[str]) -> None:
        if not (self._integer or self._number):
            return
        values = _nulls_for_empty(cells).drop_null()
        if not len(values):
            return
        self._some = True
        self._integer = self._integer and all_true(pc.match_substring_regex(values, _INTEGER))
        if self._number:
            self._number = (
                all_true(pc.match_substring_regex(values, _NUMBER))
                and not pc.any(pc.match_substring_regex(values, _LEADING_ZERO)).as_py()
                and all_true(pc.is_finite(values.cast(FLOAT)))
            )

    def type(self) -> pa.DataType:
        if not self._some:
            return STRING
        if self._integer:
            return INTEGER
        return FLOAT if self._number else STRING


def _trouble(error: str) -> str:
    if "field limit" in error:
        return f"a cell of more than {LONGEST_CELL // 1024**2} million characters; is a quote left open?"
    if "unexpected end of data" in error:
        return "a quote is opened and never closed"
    if "expected after" in error:
        return "a quoted cell goes on after its closing quote; write a quote inside a cell twice"
    return error


def _nulls_for_empty(cells: Sequence[str]) -> pa.Array:
    return pa.array([cell or None for cell in cells], STRING)
