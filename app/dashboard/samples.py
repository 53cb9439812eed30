"""What some rows of a dataset say about its columns: how the labels are balanced, how long the texts are.

Pure functions. A row is `{column: value}`, as the API gives it, and a column `{"name", "type", "distinct"?, …}`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_LABELS = 50
"""A column with more different values holds no labels."""
_BINS = 24

Row = Mapping[str, Any]
Column = Mapping[str, Any]


@dataclass(frozen=True)
class Balance:
    """How often each value of a column stands in the rows, the most frequent first."""

    column: str
    counts: tuple[tuple[str, int], ...]
    empty: int
    """Rows without a value."""
    rows: int

    @property
    def total(self) -> int:
        """Of all values; of a column of lists it may be more or less than the rows."""
        return sum(count for _, count in self.counts)


@dataclass(frozen=True)
class Bin:
    """Texts whose length is `low` to `high`, both included."""

    low: int
    high: int
    texts: int


@dataclass(frozen=True)
class Lengths:
    """How long the texts of a column are. `unit` is words or characters."""

    column: str
    unit: str
    texts: int
    mean: float
    median: int
    p95: int
    longest: int
    bins: tuple[Bin, ...]


def balances(columns: Sequence[Column], rows: Sequence[Row]) -> list[Balance]:
    """Of every column that looks like labels: few different values, or lists of few different ones."""
    found = [_balance(str(column["name"]), rows) for column in columns if _may_be_labels(column)]
    return [one for one in found if one is not None]


def lengths(columns: Sequence[Column], rows: Sequence[Row]) -> list[Lengths]:
    """In words and in characters, of every column of texts that holds no labels; of lists in words alone."""
    labels = {balance.column for balance in balances(columns, rows)}
    return list(_lengths(columns, rows, labels))


def _lengths(columns: Sequence[Column], rows: Sequence[Row], labels: set[str]) -> Iterator[Lengths]:
    for column in columns:
        name = str(column["name"])
        values = [row[name] for row in rows if row.get(name) is not None]
        if not values or name in labels:
            continue
        if column["type"] == "string":
            yield _described(name, "words", [len(value.split()) for value in values])
            yield _described(name, "characters", [len(value) for value in values])
        elif column["type"] == "list of strings":
            yield _described(name, "words", [len(value) for value in values])


def _may_be_labels(column: Column) -> bool:
    known = column.get("distinct")
    if column["type"] == "list of strings":
        return True
    return column["type"] in {"string", "integer", "boolean"} and (known is None or known <= MOST_LABELS)


def _balance(name: str, rows: Sequence[Row]) -> Balance | None:
    counts: Counter[str] = Counter()
    empty = 0
    for row in rows:
        value = row.get(name)
        if value is None or value == "":
            empty += 1
        elif isinstance(value, list):
            counts.update(str(item) for item in value)
        else:
            counts[str(value)] += 1
    filled = len(rows) - empty
    if not counts or len(counts) > MOST_LABELS or (len(counts) > 2 and len(counts) * 2 > filled):
        return None
    return Balance(name, tuple(counts.most_common()), empty, len(rows))


def _described(column: str, unit: str, sizes: Sequence[int]) -> Lengths:
    ordered = sorted(sizes)
    return Lengths(
        column,
        unit,
        texts=len(ordered),
        mean=sum(ordered) / len(ordered),
        median=_at(ordered, 0.5),
        p95=_at(ordered, 0.95),
        longest=ordered[-1],
        bins=_bins(ordered),
    )


def _at(ordered: Sequence[int], share: float) -> int:
    """The smallest length that at least this share of the texts does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _bins(ordered: Sequence[int]) -> tuple[Bin, ...]:
    """Equally wide, from the shortest to the longest."""
    low, high = ordered[0], ordered[-1]
    width = -(-(high - low + 1) // _BINS)
    counts = Counter((size - low) // width for size in ordered)
    last = (high - low) // width
    return tuple(Bin(low + at * width, low + (at + 1) * width - 1, counts[at]) for at in range(last + 1))
