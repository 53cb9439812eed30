"""An uploaded file of rows becomes one Parquet file, with a description of its columns.

`import_rows` finds the format by the name's ending and by the first bytes, checks every line, and writes; `read_rows`
gives a page of what was written.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.uploads.delimited import Csv
from app.uploads.disk import on_disk
from app.uploads.json_lines import JsonLines
from app.uploads.parquet import Parquet
from app.uploads.rows import ANSWERS, BOOLEAN, FLOAT, INTEGER, NUMBERS, STRING, STRINGS, Remark, Source
from app.uploads.text import Text
from models.errors import ArtifactDamaged, Invalid, Problem

Format = Literal["csv", "tsv", "jsonl", "parquet"]
MOST_DISTINCT = 1000
EXAMPLES = 3
EXAMPLE_CHARACTERS = 80

_ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip (or an Excel workbook)"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
)
_TYPES = {
    STRING: "string",
    INTEGER: "integer",
    FLOAT: "float",
    BOOLEAN: "boolean",
    STRINGS: "list of strings",
    NUMBERS: "list of numbers",
    ANSWERS: "answers",
}
_ROW_GROUP_ROWS = 65_536
_ROW_GROUP_BYTES = 32 * 1024**2
_PAGE_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Limits:
    """`unpacked_bytes` is what a Parquet file may hold once it is unpacked; other formats are as long as they are."""

    rows: int
    unpacked_bytes: int


@dataclass(frozen=True)
class Imported:
    """What became of an upload. The file is at the path that was given."""

    rows: int
    bytes: int
    sha256: str
    columns: list[dict[str, Any]]
    """`{"name", "type", "nulls", "distinct", "examples"}`: distinct values are counted up to 1000.

    The type is string, integer, float, boolean, list of strings, list of numbers, or answers: objects
    `{"text": [strings], "answer_start": [integers]}` as in SQuAD.
    """
    warnings: list[dict[str, str]]


def import_rows(
    stream: BinaryIO, filename: str, target: Path, limits: Limits, *, encoding: str | None = None, replace: bool = False
) -> Imported:
    """Read the seekable `stream`, and write the Parquet file `target`, which the caller removes if this raises.

    `filename` is the caller's and only its ending is looked at. Raises `Invalid` with the codes `unsupported_format`,
    `bad_encoding`, `bad_header`, `bad_row`, `unsupported_column`, `damaged_file` or `empty_dataset`; `TooLarge`;
    `StorageFailure`.
    """
    source, text = _source(stream, filename, limits, encoding, replace=replace)
    schema, rows = source.scan(limits.rows)
    warnings = list(source.warnings)
    if text is not None and (count := text.replaced()):
        warnings.append(
            Remark("replaced_characters", f"{count:,} characters could not be read and were replaced by U+FFFD")
        )
    columns = [_Column(field.name, field.type) for field in schema]
    with on_disk("the rows"):
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for group in _row_groups(source.batches(schema), columns):
                writer.write_table(group)
        with target.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
    described = [column.described() for column in columns]
    return Imported(rows, target.stat().st_size, digest, described, [asdict(warning) for warning in warnings])


def read_rows(path: Path, *, offset: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Up to `limit` rows from `offset` on (fewer of long ones: a page has about 4 MB), and whether more follow."""
    rows: list[dict[str, Any]] = []
    size = 0
    try:
        file = pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=1024**2)
        start = 0
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if start + count <= offset:
                start += count
                continue
            for batch in file.iter_batches(batch_size=limit, row_groups=[group]):
                inside = batch.slice(max(0, offset - start))
                start += batch.num_rows
                for row in inside.to_pylist():
                    if len(rows) >= limit or (rows and size > _PAGE_BYTES):
                        return rows, True
                    rows.append({name: _json_value(value) for name, value in row.items()})
                    size += _size(row)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactDamaged("the stored rows cannot be read") from error
    return rows, False


def _source(
    stream: BinaryIO, filename: str, limits: Limits, encoding: str | None, *, replace: bool
) -> tuple[Source, Text | None]:
    stream.seek(0)
    start = stream.read(4096)
    if not start:
        raise _refuse("the file is empty", code="empty_dataset")
    kind = _format(filename, start)
    if kind == "parquet":
        return Parquet(stream, limits.unpacked_bytes), None
    text = Text.of(stream, encoding, replace=replace)
    if kind == "jsonl":
        return JsonLines(text), text
    return Csv(text, "\t" if kind == "tsv" else ","), text


def _format(filename: str, start: bytes) -> Format:
    ending = PureWindowsPath(filename).suffix.lower()
    packed = next((name for mark, name in _PACKED if start.startswith(mark)), None)
    if packed is not None or ending in {".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".xlsx"}:
        raise _refuse(f"this is a packed file ({packed or ending[1:]}); unpack it and send what is inside")
    looks = _looks_like(start)
    told = _ENDINGS.get(ending)
    if "parquet" in (looks, told) and looks != told:
        if told is not None:
            raise _refuse(
                "the file is Parquet, but its name ends in " + ending
                if looks == "parquet"
                else "the name says Parquet, but the file does not begin as one"
            )
        return "parquet"
    if told == "jsonl" and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise _refuse("this is a JSON array; write one object a line (JSONL) instead")
    found = told or (None if ending else looks)
    if found is None:
        what = (
            f"{ending[:20]!r} is not the ending of a file that can be read"
            if ending
            else "the file's name has no ending"
        )
        raise _refuse(f"{what}; send .csv, .tsv, .jsonl or .parquet")
    return found


def _looks_like(start: bytes) -> Format | None:
    """By the first bytes, of a file whose name says nothing."""
    if start.startswith(b"PAR1"):
        return "parquet"
    text = start.lstrip(b"\xef\xbb\xbf \r\n")
    if text.startswith(b"{"):
        return "jsonl"
    line = text.splitlines()[0] if text.strip() else b""
    return "tsv" if b"\t" in line else "csv" if b"," in line else None


def _refuse(message: str, *, code: str = "unsupported_format") -> Invalid:
    return Invalid.of([Problem("/file", message, code)])


def _row_groups(batches: Iterator[pa.RecordBatch], columns: Sequence["_Column"]) -> Iterator[pa.Table]:
    """The batches, gathered into tables of a good size to be read back; each column sees its values on the way."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        for column, values in zip(columns, batch.columns, strict=True):
            column.see(values)
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= _ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting)


class _Column:
    """What there is to say of a column, gathered batch by batch."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self._name = name
        self._kind = kind
        self._nulls = 0
        self._seen: set[int] = set()
        """Hashes: a thousand values may be a gigabyte."""
        self._examples: list[Any] = []

    def see(self, values: pa.Array) -> None:
        self._nulls += values.null_count
        if len(self._seen) >= MOST_DISTINCT:
            return
        # Arrow has no unique() for lists and structs.
        distinct = values.drop_null() if pa.types.is_nested(self._kind) else pc.unique(values).drop_null()
        for scalar in distinct:
            value = scalar.as_py()
            digest = hash(_hashable(value))
            if digest in self._seen:
                continue
            self._seen.add(digest)
            if len(self._examples) < EXAMPLES:
                self._examples.append(_example(value))
            if len(self._seen) >= MOST_DISTINCT:
                return

    def described(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "type": _TYPES[self._kind],
            "nulls": self._nulls,
            "distinct": len(self._seen),
            "examples": self._examples,
        }


def _example(value: Any) -> Any:
    match value:
        case list():
            return [_example(item) for item in value[:EXAMPLES]]
        case dict():
            return {key: _example(item) for key, item in value.items()}
        case str():
            return _cut(value)
        case _:
            return _json_value(value)


def _hashable(value: Any) -> Any:
    match value:
        case list():
            return tuple(value)
        case dict():
            return tuple(_hashable(item) for item in value.values())
        case _:
            return value


def _size(value: Any) -> int:
    """About as many characters as the value is written in."""
    match value:
        case str():
            return len(value)
        case list():
            return sum(_size(item) for item in value)
        case dict():
            return sum(_size(item) for item in value.values())
        case _:
            return 8


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1] + "…"


def _json_value(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
