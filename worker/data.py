"""Rows: read from Parquet, normalised, split, and put into batches of tokens.

Does not know what a label means, which task it serves, or what a network is: a text has a group (texts that are equal
after normalisation) and a stratum (its label's number, -1 for none).

Shapes: N rows, B rows of a batch, L tokens of its longest row.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import JobFailure

Rows = NDArray[np.int64]

# Batches of about the same length are drawn from stretches of so many batches: long enough for little padding, short
# enough for the order to stay random.
_MEGA = 50


# --- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """E encodings of N inputs, special tokens included, not padded; E is more than N where contexts have windows."""

    ids: list[NDArray[np.int32]]
    lengths: Rows
    pad_id: int
    types: list[NDArray[np.int32]] | None = None
    """Segment ids of each token; None where they are all 0."""
    rows: Rows | None = None
    """(E,) the input that each encoding is of, in ascending order; None: one each."""
    places: list[NDArray[np.int32]] | None = None
    """The token positions that are asked, (P_i,) each, -1 for what was cut off; None: the input as a whole."""
    offsets: list[NDArray[np.int32]] | None = None
    """For a context's windows: where in it each place begins and ends, (P_i, 2), in characters."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Answers:
    """Raw logits of E encodings: P_i places with C numbers each. An input that is answered as a whole has one place."""

    values: NDArray[np.float32]
    """(S, C), S places in all; NaN where a network was not asked, or its answer is not known."""
    starts: Rows
    """(E + 1,): encoding i has `values[starts[i]:starts[i + 1]]`."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, encoding: int) -> NDArray[np.float32]:
        return self.values[self.starts[encoding] : self.starts[encoding + 1]]

    @classmethod
    def of(cls, parts: Sequence[NDArray[np.float32]], width: int) -> "Answers":
        """`parts`: (P_i, C) each; `width` is C."""
        starts = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        return cls(np.concatenate(parts) if parts else np.empty((0, width), np.float32), starts)

    @classmethod
    def whole(cls, logits: NDArray[np.float32]) -> "Answers":
        """Of inputs that are answered as a whole, (N, C)."""
        return cls(logits, np.arange(len(logits) + 1, dtype=np.int64))


def batches(lengths: Rows, batch_tokens: int, *, seed: int, epoch: int) -> list[Rows]:
    """One epoch: every row once, in batches with `longest × rows ≤ batch_tokens`, shuffled.

    A row that is longer than `batch_tokens` is a batch of its own. A pure function of its arguments: a resumed run asks
    again and gets the same batches.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths)).astype(np.int64)
    typical = max(1, int(np.mean(lengths))) if len(lengths) else 1
    stretch = max(1, batch_tokens // typical) * _MEGA
    found: list[Rows] = []
    for start in range(0, len(order), stretch):
        rows = order[start : start + stretch]
        # Stable, so that rows of one length keep the order that the shuffle gave them.
        found += _pack(rows[np.argsort(-lengths[rows], kind="stable")], lengths, batch_tokens)
    return [found[index] for index in generator.permutation(len(found))]


def in_order(lengths: Rows, batch_tokens: int) -> list[Rows]:
    """Every row once, longest first (what does not fit into memory fails at once), with little padding."""
    return _pack(np.argsort(-lengths, kind="stable").astype(np.int64), lengths, batch_tokens)


def micro_batches(rows: Rows, lengths: Rows, micro_batch_tokens: int | None) -> list[Rows]:
    """`rows` of one batch in parts of at most `micro_batch_tokens`, padding included; None: in one part."""
    if micro_batch_tokens is None:
        return [rows]
    return _pack(rows[np.argsort(-lengths[rows], kind="stable")], lengths, micro_batch_tokens)


def _pack(rows: Rows, lengths: Rows, tokens: int) -> list[Rows]:
    """Cuts `rows`, longest first, so that the first row's length times the count stays at or under `tokens`."""
    found = []
    start = 0
    while start < len(rows):
        count = max(1, tokens // max(1, int(lengths[rows[start]])))
        found.append(rows[start : start + count])
        start += count
    return found


def collate(encoded: Encoded, rows: Rows) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and, where there are any, `token_type_ids`: int64 (B, L), padded on the right."""
    longest = int(encoded.lengths[rows].max(initial=1))
    ids = np.full((len(rows), longest), encoded.pad_id, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    types = None if encoded.types is None else np.zeros_like(mask)
    for place, row in enumerate(rows):
        tokens = encoded.ids[row]
        ids[place, : len(tokens)] = tokens
        mask[place, : len(tokens)] = 1
        if types is not None and encoded.types is not None:
            types[place, : len(tokens)] = encoded.types[row]
    found = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    return found if types is None else {**found, "token_type_ids": torch.from_numpy(types)}


# --- rows -------------------------------------------------------------------------------------------------------------


def read_columns(path: Path, columns: Mapping[str, str]) -> pa.Table:
    """The named columns of a Parquet file, and no others. `columns` maps each name to the pointer of who asked for it.

    Raises `JobFailure` with the code `missing_column` or `dataset_unreadable`.
    """
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise JobFailure("the dataset's file cannot be read", code="dataset_unreadable", pointer="/dataset") from error
    for column, pointer in columns.items():
        if column not in names:
            raise JobFailure(
                f"the dataset has no column {column!r}; it has {', '.join(repr(name) for name in names[:20])}",
                code="missing_column",
                pointer=pointer,
            )
    try:
        return pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise JobFailure("the dataset's file cannot be read", code="dataset_unreadable", pointer="/dataset") from error


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def groups_of(texts: Iterable[str]) -> Rows:
    """A number for each text (N,): the same one for texts that are equal after normalisation."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(normalise(text), len(numbers)) for text in texts), np.int64)


def digest(texts: Sequence[str], labels: Sequence[str | None]) -> str:
    """SHA-256 over rows in order; what is trained on the same rows has the same one."""
    found = hashlib.sha256()
    for text, label in zip(texts, labels, strict=True):
        for part in (text, label):
            content = b"" if part is None else part.encode("utf-8", "surrogatepass")
            found.update(f"{-1 if part is None else len(content)}:".encode() + content)
    return found.hexdigest()


# --- splits -----------------------------------------------------------------------------------------------------------


def split(groups: Rows, strata: Rows, *, validation: float, test: float, seed: int) -> tuple[Rows, Rows, Rows]:
    """Rows for training, validation and test, each in ascending order.

    `validation` and `test` are shares of the labelled rows (a float) or numbers of rows (an int). The draw is
    stratified, and a group stays together; a group with a row that has no label is for training. The counts are met
    exactly unless groups are too large for that. Raises `JobFailure` (`too_few_rows`) where a part would be empty.
    """
    labelled = int((strata >= 0).sum())
    n_validation, n_test = (count_of(part, labelled) for part in (validation, test))
    if n_validation + n_test >= len(strata) or n_validation + n_test > labelled:
        raise JobFailure(
            f"{n_validation} validation and {n_test} test rows leave none of the {labelled} labelled rows for training",
            code="too_few_rows",
            hint="ask for fewer validation and test rows, or upload more",
            pointer="/dataset",
        )
    generator = np.random.default_rng((seed, 0))
    unlabelled = np.unique(groups[strata < 0])
    free = ~np.isin(groups, unlabelled)
    in_test = _draw(groups, strata, free, n_test, generator)
    in_validation = _draw(groups, strata, free & ~in_test, n_validation, generator)
    train = np.flatnonzero(~in_test & ~in_validation)
    parts = {"training": train, "validation": np.flatnonzero(in_validation), "test": np.flatnonzero(in_test)}
    for name, rows in parts.items():
        if not len(rows):
            raise JobFailure(
                f"no row is left for {name}: too many rows are equal to each other",
                code="too_few_rows",
                pointer="/dataset",
            )
    return parts["training"], parts["validation"], parts["test"]


def count_of(part: float, rows: int) -> int:
    """How many of `rows` a share (a float) or a count (an int) stands for; at least one."""
    return part if isinstance(part, int) else max(1, round(part * rows))


def limited(strata: Rows, limit: int | None, *, seed: int) -> Rows:
    """At most `limit` rows, a stratified draw, in ascending order."""
    if limit is None or limit >= len(strata):
        return np.arange(len(strata), dtype=np.int64)
    generator = np.random.default_rng((seed, 1))
    chosen = [
        generator.permutation(np.flatnonzero(strata == stratum))[:quota]
        for stratum, quota in _quotas(strata, limit).items()
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _quotas(strata: Rows, total: int) -> dict[int, int]:
    """`total` rows shared out in proportion, by largest remainder."""
    names, counts = np.unique(strata, return_counts=True)
    exact = counts * (total / counts.sum())
    quotas = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - quotas), kind="stable")
    quotas[by_remainder[: total - int(quotas.sum())]] += 1
    return {int(name): int(quota) for name, quota in zip(names, quotas, strict=True)}


def _draw(
    groups: Rows, strata: Rows, free: NDArray[np.bool_], total: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """A mask (N,) with `total` of the `free` rows, whole groups only."""
    rows = np.flatnonzero(free)
    drawn = np.zeros(len(groups), np.bool_)
    if not len(rows):
        return drawn
    _, first, sizes = np.unique(groups[rows], return_index=True, return_counts=True)
    # A group is of the stratum of its first row; rows of one text with different labels stay together all the same.
    strata_of = strata[rows][first]
    quotas = _quotas(strata[rows], total) if total <= len(rows) else {}
    order = generator.permutation(len(first))
    # Each stratum leaves its last group to what is drawn later, training above all, while there is another choice.
    reserved = set({int(strata_of[index]): int(index) for index in order}.values())
    free_first = sorted(order, key=lambda index: int(index) in reserved)
    taken: set[int] = set()
    open_rows = total
    for index in order:
        quota = quotas.get(int(strata_of[index]), 0)
        if sizes[index] <= quota and int(index) not in reserved:
            quotas[int(strata_of[index])] = quota - int(sizes[index])
            taken.add(int(index))
            open_rows -= int(sizes[index])
    # What large or reserved groups left open is filled from any stratum.
    for index in free_first:
        if int(index) not in taken and sizes[index] <= open_rows:
            taken.add(int(index))
            open_rows -= int(sizes[index])
    numbers = groups[rows][first][sorted(taken)]
    drawn[rows] = np.isin(groups[rows], numbers)
    return drawn
