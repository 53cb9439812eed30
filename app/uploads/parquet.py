"""Parquet: strings, numbers, booleans, lists of strings or of numbers, and answers as in SQuAD.

Dates, times and decimals become text; the rest is refused. Lists of numbers become lists of floats.
"""

import math
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.uploads.rows import (
    ANSWERS,
    BAD_LINES_TOLD,
    BATCH_ROWS,
    BOOLEAN,
    FLOAT,
    INTEGER,
    KEPT,
    LONGEST_CELL,
    NUMBERS,
    STRING,
    STRINGS,
    BadLines,
    Remark,
    all_true,
    check_answers,
    check_names,
    check_rows,
    empty,
    named,
)
from models.errors import Invalid, Problem, TooLarge

_NUMBER_BYTES = 8


class Parquet:
    """What the file says of its size is checked, and then not believed: rows are unpacked few at a time."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self.warnings: list[Remark] = []
        self._stream = stream
        self._max_bytes = max_bytes

    def scan(self, max_rows: int) -> tuple[pa.Schema, int]:
        try:
            file = self._open()
            metadata = file.metadata
            schema = file.schema_arrow
            groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
            chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
            # A list of a thousand equal numbers is a few bytes long, so what it holds is counted too.
            size = sum(max(chunk.total_uncompressed_size, _NUMBER_BYTES * chunk.num_values) for chunk in chunks)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _damaged() from error
        check_rows(metadata.num_rows, max_rows)
        if size > self._max_bytes:
            raise self._too_large()
        if not schema.names:
            empty("the file has no columns")
        check_names(schema.names)
        columns = self._columns(schema)
        if not metadata.num_rows:
            empty("the file has no rows")
        rows = 0
        for batch in self.batches(columns):
            rows += batch.num_rows
        if rows != metadata.num_rows:
            raise _damaged()
        return columns, rows

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        size = row = 0
        bad = BadLines("row")
        try:
            for batch in self._open(dictionaries=True).iter_batches(batch_size=BATCH_ROWS):
                # A dictionary is small while its rows are not, so cells are measured before they are spread out.
                for start in range(0, batch.num_rows, 256):
                    few = batch.slice(start, 256)
                    size += sum(_spread_size(column, _rows(few, row + start)) for column in few.columns)
                    if size > self._max_bytes:
                        raise self._too_large()
                    plain = _plain_batch(few, schema, row + start)
                    _check_cells(plain, row + start, bad)
                    yield plain
                row += batch.num_rows
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _damaged() from error
        bad.tell()

    def _open(self, *, dictionaries: bool = False) -> pq.ParquetFile:
        self._stream.seek(0)
        source = pa.PythonFile(self._stream, mode="r")
        limits = {"thrift_string_size_limit": 16 * 1024**2, "thrift_container_size_limit": 1_000_000}
        file = pq.ParquetFile(source, buffer_size=1024**2, pre_buffer=False, **limits)
        if not dictionaries:
            return file
        texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        self._stream.seek(0)
        return pq.ParquetFile(source, buffer_size=1024**2, pre_buffer=False, read_dictionary=texts, **limits)

    def _columns(self, schema: pa.Schema) -> pa.Schema:
        columns, refused, turned = [], [], []
        for column in schema:
            kind = _stored_type(column.type)
            if kind is None:
                refused.append(
                    Problem(
                        "/file",
                        f"{named(column.name)} is {column.type}".replace("\n", " ")[:200],
                        "unsupported_column",
                    )
                )
            else:
                columns.append(pa.field(column.name, kind))
                if kind == STRING and not _is_text(_value_type(column.type)) and not pa.types.is_null(column.type):
                    turned.append(column.name)
        if refused:
            raise Invalid(
                f"{refused[0].message}, which cannot be used"
                + (f" (the first of {len(refused)} such columns)" if len(refused) > 1 else ""),
                code="unsupported_column",
                hint=f"{KEPT} can be used; leave other columns out of the file",
                problems=refused[:BAD_LINES_TOLD],
            )
        if turned:
            names = ", ".join(turned[:10]) + (", …" if len(turned) > 10 else "")
            self.warnings.append(Remark("turned_into_text", f"dates, times and decimals are kept as text: {names}"))
        return pa.schema(columns)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the file holds more than {self._max_bytes:,} bytes when it is unpacked",
            hint="split it into several datasets",
        )


def _damaged() -> Invalid:
    return Invalid.of(
        [Problem("/file", "this is not a Parquet file that can be read; it is damaged or cut off", "damaged_file")]
    )


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _stored_type(kind: pa.DataType) -> pa.DataType | None:
    """The type that a column is kept as; None for one that cannot be used."""
    value, types = _value_type(kind), pa.types
    if _is_text(value) or types.is_null(value) or types.is_decimal(value):
        return STRING
    if types.is_date(value) or types.is_time(value) or types.is_timestamp(value):
        return STRING
    if types.is_boolean(value):
        return BOOLEAN
    if types.is_integer(value):
        return INTEGER
    if types.is_floating(value):
        return FLOAT
    if _is_list(value):
        items = value.value_type
        if _is_text(items) or types.is_null(items):
            return STRINGS
        return NUMBERS if types.is_integer(items) or types.is_floating(items) else None
    return ANSWERS if types.is_struct(value) and _are_answers(value) else None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _are_answers(kind: pa.StructType) -> bool:
    """Of the two names in either order, and of any width. A list of nulls is what nothing but empty lists become."""
    if sorted(field.name for field in kind) != ["answer_start", "text"]:
        return False
    texts, starts = kind.field("text").type, kind.field("answer_start").type
    if not _is_list(texts) or not _is_list(starts):
        return False
    text, start = texts.value_type, starts.value_type
    return (_is_text(text) or pa.types.is_null(text)) and bool(pa.types.is_integer(start) or pa.types.is_null(start))


def _rows(few: pa.RecordBatch, row: int) -> str:
    return f"rows {row + 1} to {row + few.num_rows}"


def _spread_size(column: pa.Array, rows: str) -> int:
    """Bytes of a few cells once each stands for itself. Raises `Invalid`, naming `rows`, for one that is too long."""
    if pa.types.is_struct(column.type):
        return sum(_spread_size(part, rows) for part in column.flatten())
    if _is_list(column.type):
        return _NUMBER_BYTES * len(column) + _spread_size(column.flatten(), rows)
    if pa.types.is_dictionary(column.type):
        values = column.dictionary
        lengths = pc.binary_length(values) if _is_text(values.type) else None
        lengths = lengths.take(column.indices) if lengths is not None else None
    elif _is_text(column.type):
        lengths = pc.binary_length(column)
    else:
        lengths = None
    if lengths is None or lengths.null_count == len(lengths):
        return _NUMBER_BYTES * len(column)
    if pc.max(lengths).as_py() > LONGEST_CELL:
        message = f"in {rows} a text has more than {LONGEST_CELL:,} bytes"
        raise Invalid.of([Problem("", message, "bad_row")])
    return _NUMBER_BYTES * len(column) + int(pc.sum(lengths).as_py())


def _plain_batch(few: pa.RecordBatch, schema: pa.Schema, row: int) -> pa.RecordBatch:
    try:
        columns = [_plain(column, field.type) for column, field in zip(few.columns, schema, strict=True)]
        plain = pa.record_batch(columns, schema=schema)
        plain.validate(full=True)  # Parquet says that texts are UTF-8, and nobody has looked yet
    except pa.ArrowInvalid as error:
        message = f"in {_rows(few, row)} a text is not UTF-8, or a number does not fit 64 bits"
        raise Invalid.of([Problem("", message, "bad_row")]) from error
    return plain


def _plain(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind == FLOAT:
        column = column.cast(FLOAT)
        return pc.if_else(pc.is_finite(column), column, pa.scalar(None, FLOAT))  # NaN is how pandas writes null
    if kind == NUMBERS:
        return column.cast(NUMBERS, safe=False)  # integers of more than 53 bits are rounded
    if kind == ANSWERS:
        parts = {field.name: part for field, part in zip(column.type, column.flatten(), strict=True)}
        return pa.StructArray.from_arrays(
            [parts[field.name].cast(field.type) for field in ANSWERS], fields=list(ANSWERS), mask=column.is_null()
        )
    return column.cast(kind)


def _check_cells(batch: pa.RecordBatch, row: int, bad: BadLines) -> None:
    """Adds the rows whose lists hold what they may not; they are looked at one by one only if there is such a row."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if _is_sound(column):
            continue
        for number, cell in enumerate(column, row + 1):
            try:
                _check_cell(cell.as_py())
            except ValueError as error:
                bad.add(number, f"{named(field.name)} {error}")


def _is_sound(column: pa.Array) -> bool:
    if column.type == NUMBERS:
        numbers = column.flatten()
        return not numbers.null_count and all_true(pc.is_finite(numbers))
    if column.type == ANSWERS:
        texts, starts = column.flatten()
        return bool(
            texts.null_count == starts.null_count == column.null_count
            and not texts.flatten().null_count
            and not starts.flatten().null_count
            and all_true(pc.equal(pc.list_value_length(texts), pc.list_value_length(starts)))
        )
    return True


def _check_cell(value: list[float | None] | dict[str, object] | None) -> None:
    """Of the types that `_is_sound` looks at. Raises ValueError with what is wrong."""
    if isinstance(value, dict):
        check_answers(value)
    elif value is not None and not all(number is not None and math.isfinite(number) for number in value):
        raise ValueError("has NaN, an infinity or null among its numbers")
