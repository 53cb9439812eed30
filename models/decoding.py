"""What logits over places mean: entities of a text, and stretches of a context. Used in measuring and in serving alike.

Does not know tokenizers or networks: the caller says where in the text each place stands. P places, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Strategy = Literal["none", "simple", "first", "average", "max"]
"""How the tokens of a text become entities, by the names that transformers gives them."""

OUTSIDE = "O"
_PREFIXES = ("B", "I", "E", "S")
_UNNAMED = "_"  # what seqeval calls the entities of the tags B and I that name no type


@dataclass(frozen=True)
class Entity:
    entity_group: str
    """The type, without its prefix; with the strategy "none" the label as it is."""
    score: float
    """The mean probability of the labels that made it."""
    start: int
    end: int
    """Exclusive; both in the units of the caller's offsets."""


@dataclass(frozen=True)
class Span:
    """A stretch of a context, in characters, `end` exclusive; `Span(0, 0, …)` says that there is no answer."""

    start: int
    end: int
    score: float
    """Its probability among every stretch that was possible, "no answer" included."""


# --- words ------------------------------------------------------------------------------------------------------------


def spans_of_tags(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a row of tags: (type, first place, last place + 1), in order.

    BIO as conlleval and seqeval's default mode read it: an I- that continues nothing of its type begins an entity; E-
    and S- of the BIOES scheme end one. Tags without a prefix, such as "person", belong together where neighbours are
    equal.
    """
    found: list[tuple[str, int, int]] = []
    ended = True  # whatever comes next does not continue the last entity
    for place, tag in enumerate(tags):
        if tag == OUTSIDE:
            ended = True
            continue
        prefix, kind = _parted(tag)
        if ended or prefix in {"B", "S"} or found[-1][0] != kind:
            found.append((kind, place, place + 1))
        else:
            found[-1] = (kind, found[-1][1], place + 1)
        ended = prefix in {"E", "S"}
    return found


def entities(
    logits: Floats, labels: Sequence[str], offsets: Integers, strategy: Strategy, words: Sequence[int] | None = None
) -> list[Entity]:
    """The entities of one text, in order.

    `logits` (P, C) of places that stand at `offsets` (P, 2), ends exclusive. `words` (P,), ascending, says which word
    each place is a piece of; None: each place is a word. "simple" lets each place speak for itself, "first" the first
    piece of a word for it, "average" takes the mean probabilities of its pieces, "max" the surest piece. Neighbours of
    one type make an entity, as `spans_of_tags` says; with "none" each place that is not O is one.
    """
    if not len(logits):
        return []
    probabilities = _softmax(np.asarray(logits, np.float64))
    places = np.asarray(offsets)
    if words is not None and strategy in {"first", "average", "max"}:
        probabilities, places = _by_word(probabilities, places, np.asarray(words), strategy)
    best = probabilities.argmax(axis=1)
    scores = probabilities[np.arange(len(best)), best]
    tags = [labels[number] for number in best]
    if strategy == "none":
        spans = [(tag, place, place + 1) for place, tag in enumerate(tags) if tag != OUTSIDE]
    else:
        spans = spans_of_tags(tags)
    return [
        Entity(kind, float(scores[first:end].mean()), int(places[first, 0]), int(places[end - 1, 1]))
        for kind, first, end in spans
    ]


def _parted(tag: str) -> tuple[str, str]:
    """A tag's prefix and type; a tag without a prefix goes on where its like went before, as I- does."""
    if tag in _PREFIXES:
        return tag, _UNNAMED
    if tag[1:2] == "-" and tag[0] in _PREFIXES:
        return tag[0], tag[2:] or _UNNAMED
    return "I", tag


def _by_word(
    probabilities: NDArray[np.float64], offsets: Integers, words: Integers, strategy: Strategy
) -> tuple[NDArray[np.float64], Integers]:
    """Probabilities and offsets of W words out of those of their pieces."""
    starts = np.flatnonzero(np.diff(words, prepend=words[0] - 1))
    ends = np.append(starts[1:], len(words))
    spread = np.stack([offsets[starts, 0], offsets[ends - 1, 1]], axis=1)
    if strategy == "first":
        return probabilities[starts], spread
    if strategy == "average":
        return np.add.reduceat(probabilities, starts) / (ends - starts)[:, None], spread
    surest = probabilities.max(axis=1)
    chosen = [start + int(surest[start:end].argmax()) for start, end in zip(starts, ends, strict=True)]
    return probabilities[chosen], spread


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return found


# --- stretches --------------------------------------------------------------------------------------------------------


def best_spans(
    windows: Sequence[Floats],
    offsets: Sequence[Integers],
    *,
    top_k: int = 1,
    max_answer_length: int = 30,
    allow_none: bool,
) -> list[Span]:
    """The best answers to one question, best first: at most `top_k`, and at least one.

    `windows`: of each window (P, 2) logits of where the answer begins and ends; place 0 stands for "no answer in this
    window". `offsets`: where each place stands in the context, (P, 2) characters. A stretch scores the sum of its two
    logits, is at most `max_answer_length` places long, and of two windows that show it the surer one counts. "No
    answer" scores the least that any window gives its place 0 (SQuAD 2.0: one window that sees an answer is enough),
    and is among the answers only with `allow_none`, or where the context has no place at all.
    """
    parts = [_candidates(np.asarray(window, np.float64), max_answer_length) for window in windows]
    starts = np.concatenate([np.asarray(at)[first, 0] for (first, _, _), at in zip(parts, offsets, strict=True)])
    ends = np.concatenate([np.asarray(at)[last, 1] for (_, last, _), at in zip(parts, offsets, strict=True)])
    scores = np.concatenate([score for _, _, score in parts])
    shown = ends > starts  # some tokenizers have tokens that stand for no character
    starts, ends, scores = starts[shown].astype(np.int64), ends[shown].astype(np.int64), scores[shown]
    if len(windows) > 1:
        starts, ends, scores = _merged(starts, ends, scores)
    null = min(float(window[0, 0]) + float(window[0, 1]) for window in windows)
    highest = max(null, float(scores.max(initial=null)))
    total = np.exp(scores - highest).sum() + np.exp(null - highest)
    best = [int(scores.argmax())] if top_k == 1 and len(scores) else np.argsort(-scores, kind="stable")[:top_k].tolist()
    found = [(float(scores[at]), int(starts[at]), int(ends[at])) for at in best]
    if allow_none or not found:
        found = sorted([*found, (null, 0, 0)], key=lambda one: -one[0])[:top_k]  # stable: at a tie the stretch wins
    return [Span(start, end, float(np.exp(score - highest) / total)) for score, start, end in found]


def _candidates(window: NDArray[np.float64], longest: int) -> tuple[Integers, Integers, NDArray[np.float64]]:
    """First place, last place and score of every stretch of one window, place 0 left out; ordered by their places."""
    places = len(window)
    first, length = np.meshgrid(np.arange(1, places), np.arange(min(longest, places)), indexing="ij")
    last = first + length
    possible = last < places
    first, last = first[possible], last[possible]
    return first, last, window[first, 0] + window[last, 1]


def _merged(
    starts: NDArray[np.int64], ends: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Every stretch once, with its highest score; ordered by where it begins and ends."""
    if not len(starts):
        return starts, ends, scores
    order = np.lexsort((-scores, ends, starts))
    starts, ends, scores = starts[order], ends[order], scores[order]
    new = np.concatenate([[True], (starts[1:] != starts[:-1]) | (ends[1:] != ends[:-1])])
    return starts[new], ends[new], scores[new]
