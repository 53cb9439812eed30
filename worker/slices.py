"""Where a student is weak: the arms on parts of the test rows, by length, by true label, by the values of columns.

A mean over all rows hides a part that is lost. Knows no network and no report. N test rows.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.data import Encoded, Rows
from worker.statistics import CONFIDENCE, paired
from worker.tasks.base import Predictions, Split, TaskKind

FEWEST = 20
"""Rows under which a slice gets no interval."""
LENGTH, LABEL = "text length", "true label"
"""Names of the slices that every job has; those of columns have the column's name."""
RARE, OTHER, NONE = "rare labels", "other", "(none)"
_RARE_SHARE = 0.05
_MOST_VALUES = 20


class Slice(NamedTuple):
    """Some of the test rows: those where `name` is `value`."""

    name: str
    value: str
    rows: Rows
    """Their numbers, at least one."""


def slices(
    kind: TaskKind,
    split: Split,
    labels: Sequence[str],
    *,
    arms: Mapping[str, Predictions | None],
    lengths: Rows,
    columns: Mapping[str, Sequence[str | None]],
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The table of every slice, `{name, value, rows, arms, drop, note}`, as it stands in the report.

    `arms` has the answers of each arm by name, `teacher` and `distilled` among them, None for one that there is not;
    `lengths` (N,) are tokens, `columns` values of each row. `drop` is the paired interval of teacher − distilled on
    these rows alone; it is null on fewer than 20 rows, which prove nothing, and `note` says so.
    """
    statistics = {name: None if one is None else kind.statistics(one, split) for name, one in arms.items()}
    teacher, distilled = statistics["teacher"], statistics["distilled"]
    if teacher is None or distilled is None:
        raise ValueError("slices compare a teacher with a distilled student")
    found = []
    for name, value, rows in _all(kind, split, labels, lengths, columns):
        few = len(rows) < FEWEST
        drop = None if few else paired(teacher[rows], distilled[rows], kind.metric, confidence=confidence, seed=seed)
        found.append(
            {
                "name": name,
                "value": value,
                "rows": len(rows),
                "arms": {
                    arm: None if one is None else float(kind.metric(one[rows].sum(axis=0)))
                    for arm, one in statistics.items()
                },
                "drop": drop and drop.as_json(),
                "note": f"fewer than {FEWEST} rows: no interval" if few else None,
            }
        )
    return found


def tokens_of(encoded: Encoded, rows: int) -> Rows:
    """The tokens of each of so many inputs, (N,); of a context those of all its windows, what they share twice."""
    if encoded.rows is None:
        return encoded.lengths
    return np.bincount(encoded.rows, weights=encoded.lengths, minlength=rows).astype(np.int64)


def _all(
    kind: TaskKind,
    split: Split,
    labels: Sequence[str],
    lengths: Rows,
    columns: Mapping[str, Sequence[str | None]],
) -> Iterator[Slice]:
    yield from by_length(lengths)
    if kind.shape == "text" and kind.nature != "number":
        yield from by_label(_indicators(split.targets, len(labels)), labels)
    for name, values in columns.items():
        yield from by_value(name, values)


def by_length(lengths: Rows) -> Iterator[Slice]:
    """Thirds of the rows by their tokens, as even as equal lengths allow; fewer where most rows are of one length."""
    first, second = (int(np.quantile(lengths, share, method="lower")) for share in (1 / 3, 2 / 3))
    bands = {
        f"up to {first} tokens": lengths <= first,
        f"{first + 1} to {second} tokens": (lengths > first) & (lengths <= second),
        f"more than {second} tokens": lengths > second,
    }
    for value, inside in bands.items():
        if inside.any():
            yield Slice(LENGTH, value, np.flatnonzero(inside))


def by_label(indicators: NDArray[np.bool_], labels: Sequence[str]) -> Iterator[Slice]:
    """The rows of each label, in the order of the labels, and those of rare ones together; `indicators` (N, C).

    Rare is a label that less than 5 % of the rows have, or that is not among the 20 commonest; one that no row has is
    left out. A row with several labels stands in several slices.
    """
    counts = indicators.sum(axis=0)
    ranks = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
    common = (counts >= _RARE_SHARE * len(indicators)) & (counts > 0) & (ranks < _MOST_VALUES)
    for number in np.flatnonzero(common).tolist():
        yield Slice(LABEL, labels[number], np.flatnonzero(indicators[:, number]))
    rare = indicators[:, ~common].any(axis=1)
    if rare.any():
        yield Slice(LABEL, RARE, np.flatnonzero(rare))


def by_value(name: str, values: Sequence[str | None]) -> Iterator[Slice]:
    """The rows of each of the 20 commonest values of a column, commonest first, and the rest as `other`."""
    spelled = [NONE if value is None else value for value in values]
    # A value that is itself called so joins the rest, where there is one.
    ranked = [value for value, _ in Counter(spelled).most_common()]
    shown = ranked if len(ranked) <= _MOST_VALUES else [value for value in ranked if value != OTHER][:_MOST_VALUES]
    rows: dict[str, list[int]] = {value: [] for value in [*shown, OTHER]}
    for row, value in enumerate(spelled):
        rows[value if value in rows else OTHER].append(row)
    for value, own in rows.items():
        if own:
            yield Slice(name, value, np.array(own, np.int64))


def _indicators(targets: NDArray[Any], labels: int) -> NDArray[np.bool_]:
    """(N, C) which labels each row has, of numbers of labels (N,) or indicators (N, C)."""
    if targets.ndim == 2:
        many: NDArray[np.bool_] = targets > 0
        return many
    one: NDArray[np.bool_] = targets[:, None] == np.arange(labels)
    return one
