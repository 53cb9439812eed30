"""Parquet: strings, numbers, booleans and lists of strings; dates and decimals become text; the rest is refused."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.uploads.rows import (
    BAD_LINES_TOLD,
    BATCH_ROWS,
    BOOLEAN,
    FLOAT,
    INTEGER,
    LONGEST_CELL,
    STRING,
    STRINGS,
    Remark,
    check_names,
    check_rows,
    empty,
    named,
)
from models.errors import Invalid, Problem, TooLarge


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
            size = sum(
                group.column(index).total_uncompressed_size for group in groups for index in range(group.num_columns)
            )
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
        try:
            for batch in self._open(dictionaries=True).iter_batches(batch_size=BATCH_ROWS):
                # A dictionary is small while its rows are not, so cells are measured before they are spread out.
                for start in range(0, batch.num_rows, 256):
                    few = batch.slice(start, 256)
                    size += sum(_spread_size(column, row + start) for column in few.columns)
                    if size > self._max_bytes:
                        raise self._too_large()
                    yield _plain_batch(few, schema, row + start)
                row += batch.num_rows
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _damaged() from error

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
                hint="text, numbers, booleans and lists of texts can be used; leave other columns out of the file",
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
    if (types.is_list(value) or types.is_large_list(value)) and _is_text(value.value_type):
        return STRINGS
    return None


def _spread_size(column: pa.Array, row: int) -> int:
    """Bytes of a few cells once each stands for itself. Raises `Invalid` for one that is too long."""
    if pa.types.is_dictionary(column.type):
        values = column.dictionary
        lengths = pc.binary_length(values) if _is_text(values.type) else None
        lengths = lengths.take(column.indices) if lengths is not None else None
    elif _is_text(column.type):
        lengths = pc.binary_length(column)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.binary_length(column.flatten())
    else:
        lengths = None
    if lengths is None or lengths.null_count == len(lengths):
        return 8 * len(column)
    if pc.max(lengths).as_py() > LONGEST_CELL:
        message = f"in rows {row + 1} to {row + len(column)} a text has more than {LONGEST_CELL:,} bytes"
        raise Invalid.of([Problem("", message, "bad_row")])
    return 8 * len(column) + int(pc.sum(lengths).as_py())


def _plain_batch(few: pa.RecordBatch, schema: pa.Schema, row: int) -> pa.RecordBatch:
    try:
        columns = [_plain(column, field.type) for column, field in zip(few.columns, schema, strict=True)]
        plain = pa.record_batch(columns, schema=schema)
        plain.validate(full=True)  # Parquet says that texts are UTF-8, and nobody has looked yet
    except pa.ArrowInvalid as error:
        message = f"in rows {row + 1} to {row + few.num_rows} a text is not UTF-8, or a number does not fit 64 bits"
        raise Invalid.of([Problem("", message, "bad_row")]) from error
    return plain


def _plain(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind == FLOAT:
        column = column.cast(FLOAT)
        return pc.if_else(pc.is_finite(column), column, pa.scalar(None, FLOAT))  # NaN is how pandas writes null
    return column.cast(kind)
