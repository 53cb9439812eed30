"""What a network says of a row, kept so that nothing is computed twice.

A signal here is a row of raw logits, float32, exact at any temperature. It is kept by row, never by step, so that
shuffling, accumulation, several processes and a resumed run cannot pair a row with another row's answer. The key of a
teacher is over everything that decides its answers except the row; the key of a row is over the task's template and
the text.

Does not know what a network is: whoever asks has its key.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def row_keys(template: str, texts: Iterable[str]) -> list[str]:
    """The key of each row: SHA-256 over what the task makes of a text (its `template`) and the text as it is."""
    start = hashlib.sha256(template.encode() + b"\0")
    keys = []
    for text in texts:
        digest = start.copy()
        # A lone surrogate can stand in a JSON text and has no UTF-8 form.
        digest.update(text.encode("utf-8", "surrogatepass"))
        keys.append(digest.hexdigest())
    return keys


# --- the cache --------------------------------------------------------------------------------------------------------


class SignalCache:
    """Logits by teacher and row, below `root`: one Parquet file per teacher.

    A write merges with what is there, under a lock, into a new file that takes the old one's place; a reader needs no
    lock and sees either. A file that is damaged counts as absent. When the files outgrow `budget_bytes`, those that
    were used least recently go first, but never the one just written.
    """

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._root = root
        self._budget = budget_bytes
        root.mkdir(parents=True, exist_ok=True)

    def known(self, teacher_key: str, row_keys: Sequence[str]) -> list[NDArray[np.float32] | None]:
        """Of each row its raw logits, flattened as they were stored; None where they are not known."""
        path = self._path(teacher_key)
        stored = _read(path)
        if stored is None:
            return [None] * len(row_keys)
        with suppress(FileNotFoundError):  # evicted by another process meanwhile; what was read is still true
            os.utime(path)
        return [stored.get(bytes.fromhex(key)) for key in row_keys]

    def store(self, teacher_key: str, row_keys: Sequence[str], logits: Sequence[NDArray[np.float32]]) -> None:
        """Adds the logits of each of `row_keys`, flattened; a row that is already there is replaced."""
        path = self._path(teacher_key)
        with self._locked():
            merged = _read(path) or {}
            merged |= {
                bytes.fromhex(key): values.astype(np.float32).ravel()
                for key, values in zip(row_keys, logits, strict=True)
            }
            _write(path, merged)
            self._evict(keep=path)

    def _path(self, teacher_key: str) -> Path:
        if not teacher_key.isalnum():
            raise ValueError("a teacher's key is a hexadecimal digest")
        return self._root / f"{teacher_key}.parquet"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # The lock dies with the process that holds it. One for the whole folder, so that its file is never removed.
        with (self._root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _evict(self, keep: Path) -> None:
        files = [(path.stat(), path) for path in self._root.glob("*.parquet")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if total <= self._budget:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= stat.st_size


def _read(path: Path) -> dict[bytes, NDArray[np.float32]] | None:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        keys = table.column("key").to_pylist()
        column = table.column("logits").cast(pa.list_(pa.float32())).combine_chunks()
        values = np.asarray(column.values, np.float32)
        ends = np.asarray(column.offsets)
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError, TypeError):
        return None
    return {key: values[ends[row] : ends[row + 1]] for row, key in enumerate(keys)}


def _write(path: Path, logits: Mapping[bytes, NDArray[np.float32]]) -> None:
    ends = np.zeros(len(logits) + 1, np.int32)
    np.cumsum([len(one) for one in logits.values()], out=ends[1:])
    flat = np.concatenate(list(logits.values())) if logits else np.empty(0, np.float32)
    values = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat, pa.float32()))
    table = pa.table({"key": pa.array(list(logits), pa.binary(32)), "logits": values})
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            pq.write_table(table, file, write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
