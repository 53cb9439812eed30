"""What a student's raw logits become in an answer, in the shapes that Hugging Face gives them, and what may be chosen.

Does not know ONNX Runtime or files. P places of an encoding, C numbers of a place; what the places are says
`models.runtime.Runtime.answers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, assert_never, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Encoding

from models import decoding
from models.decoding import OUTSIDE, Strategy
from models.errors import Invalid, Problem
from models.inputs import Input, Question, Words, places

Kind = Literal["text-classification", "text-regression", "token-classification", "question-answering"]
Raw = NDArray[np.float32]
Function = Literal["softmax", "sigmoid", "none"]


class Label(TypedDict):
    """One label of a text. `score` is what `function_to_apply` made of the logit; of a regression it is the number."""

    label: str
    score: float


class Entity(TypedDict):
    """One entity of a text; `start` and `end` (exclusive) count characters."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class Token(TypedDict):
    """One token that is of an entity: what `aggregation_strategy` "none" gives."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


class Span(TypedDict):
    """One stretch of a context; an empty `answer` says that the context does not answer the question."""

    answer: str
    score: float
    start: int
    end: int


Answer = list[Label] | list[Entity] | list[Token] | Span | list[Span]
"""Of one input."""

# Of two numbers that agree the difference is at most this share of the larger one, or of 1.
_TOLERANCE = 0.05

_CHOICES: Mapping[Kind, tuple[str, ...]] = {
    "text-classification": ("top_k", "function_to_apply"),
    "text-regression": (),
    "token-classification": ("aggregation_strategy",),
    "question-answering": ("top_k",),
}


class Parameters(BaseModel):
    """What a caller of /predict may choose; each task has some of these."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    top_k: int | None = Field(None, ge=1)
    """The best so many; null: all labels of a text, the one best answer to a question."""
    function_to_apply: Function | None = None
    """What makes a score of a text's logit; null: softmax for one label of several, sigmoid for any number of them."""
    aggregation_strategy: Strategy | None = None
    """How tokens become entities; null: simple. Students learn from the first token of each word, and it speaks for the
    word with simple and first."""

    @classmethod
    def parse(cls, document: Mapping[str, Any] | None) -> "Parameters":
        """Raises `Invalid`: code `unknown_parameter` for a name, `invalid_parameter` for a value."""
        try:
            return cls.model_validate(dict(document or {}))
        except ValidationError as error:
            raise Invalid.of(
                [_problem(detail["type"], detail["loc"], detail["msg"]) for detail in error.errors()]
            ) from error

    def problems(self, kind: Kind) -> list[Problem]:
        """What was chosen and is not to be chosen in a task of this kind: code `unknown_parameter`."""
        has = _CHOICES[kind]
        known = f"it has {', '.join(has)}" if has else "it has none"
        return [
            Problem(f"/parameters/{name}", f"{name!r} is not a parameter of {kind}; {known}", "unknown_parameter")
            for name, value in self
            if value is not None and name not in has
        ]


def _problem(kind: str, where: tuple[int | str, ...], message: str) -> Problem:
    name = str(where[0])[:80] if where else ""
    pointer = "/parameters/" + name.replace("~", "~0").replace("/", "~1")
    if kind == "extra_forbidden":
        known = ", ".join(Parameters.model_fields)
        return Problem(pointer, f"{name!r} is not a parameter of any task; there are {known}", "unknown_parameter")
    return Problem(pointer, message, "invalid_parameter")


def labels_of(logits: Raw, names: Sequence[str], function: Function, top_k: int | None = None) -> list[Label]:
    """The labels of a text, best first, equal scores in the order of `names`. `logits` (C,)."""
    scores = _scores(logits.astype(np.float64), function)
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [Label(label=names[index], score=float(scores[index])) for index in order]


def entities_of(
    item: str | Words, encoding: Encoding, logits: Raw, names: Sequence[str], strategy: Strategy
) -> list[Entity]:
    """The entities of a text, in order. `logits` (P, C) at `asked(item, encoding)`; a word that was cut off is in none.

    The characters of `Words` are counted with one space between two of them.
    """
    if isinstance(item, Words):
        text = " ".join(item.words)
        ends = np.cumsum([len(word) + 1 for word in item.words], dtype=np.int64) - 1
        offsets = np.stack([ends - [len(word) for word in item.words], ends], axis=1)
        read = ~np.isnan(logits).any(axis=1)
        found = decoding.entities(logits[read], names, offsets[read], "simple")
    else:
        text = item
        at = asked(item, encoding)
        # Only a word's first token has learned anything, so "simple", which asks each token, is meant for words.
        by_word: Strategy = "first" if strategy == "simple" else strategy
        words = [int(encoding.word_ids[position]) for position in at]
        found = decoding.entities(logits, names, _offsets(encoding, at), by_word, words)
    entities = []
    for one in found:
        start, end = _trimmed(text, one.start, one.end)
        entities.append(
            Entity(entity_group=one.entity_group, score=one.score, word=text[start:end], start=start, end=end)
        )
    return entities


def tokens_of(item: str, encoding: Encoding, logits: Raw, names: Sequence[str]) -> list[Token]:
    """The tokens of a text that are of an entity, in order. `logits` (P, C) at `asked(item, encoding)`."""
    found = []
    for position, row in zip(asked(item, encoding), logits.astype(np.float64), strict=True):
        scores = _scores(row, "softmax")
        best = int(scores.argmax())
        if names[best] != OUTSIDE:
            start, end = encoding.offsets[position]
            found.append(
                Token(
                    entity=names[best],
                    score=float(scores[best]),
                    index=int(position),
                    word=encoding.tokens[position],
                    start=start,
                    end=end,
                )
            )
    return found


def spans_of(
    item: Question, encodings: Sequence[Encoding], windows: Sequence[Raw], *, top_k: int, allow_none: bool
) -> list[Span]:
    """The best answers to a question, best first. `windows`: of each encoding (P, 2) at `asked(item, encoding)`."""
    offsets = [_offsets(encoding, asked(item, encoding)) for encoding in encodings]
    spans = []
    for one in decoding.best_spans(windows, offsets, top_k=top_k, allow_none=allow_none):
        start, end = _trimmed(item.context, one.start, one.end)
        spans.append(Span(answer=item.context[start:end], score=one.score, start=start, end=end))
    return spans


# --- two answers, and one that is doubtful ----------------------------------------------------------------------------


def agree(first: Answer, second: Answer, kind: Kind, *, any_of: bool = False) -> bool:
    """Whether two students say the same of an input, both with the same parameters.

    Of a text the best label, or with `any_of`, where it may have any number of them, all whose score is above one half;
    of words the entities with their type and place, of a question the text of the best answer. Two numbers agree that
    differ by no more than 5 % of the larger one, or of 1.
    """
    match kind:
        case "text-classification":
            one, other = cast("list[Label]", first), cast("list[Label]", second)
            return _chosen(one, any_of=any_of) == _chosen(other, any_of=any_of)
        case "text-regression":
            [mine], [theirs] = cast("list[Label]", first), cast("list[Label]", second)
            larger = max(1.0, abs(mine["score"]), abs(theirs["score"]))
            return abs(mine["score"] - theirs["score"]) <= _TOLERANCE * larger
        case "token-classification":
            return _places(first) == _places(second)
        case "question-answering":
            return _best(first)["answer"] == _best(second)["answer"]
        case _:
            assert_never(kind)


def sureness(kind: Kind, raw: Sequence[Raw], answer: Answer, *, any_of: bool = False) -> float:
    """How sure a student is of an answer, between 0 and 1, whatever parameters it has; `raw` are its logits.

    Of a text the probability of the best label, by softmax; with `any_of` that of the label of which it is least sure,
    there or not. Of words that of the least sure place, of a question the score of the best answer. A number is always
    sure. NaN where a logit of a text is.
    """
    match kind:
        case "text-classification":
            logits = raw[0][0].astype(np.float64)
            if any_of:
                return float(_scores(np.abs(logits), "sigmoid").min())
            return float(_scores(logits, "softmax").max())
        case "text-regression":
            return 1.0
        case "token-classification":
            read = raw[0][~np.isnan(raw[0]).any(axis=1)].astype(np.float64)
            return min((float(_scores(row, "softmax").max()) for row in read), default=1.0)
        case "question-answering":
            return _best(answer)["score"]
        case _:
            assert_never(kind)


def _chosen(labels: Sequence[Label], *, any_of: bool) -> set[str]:
    if any_of:
        return {one["label"] for one in labels if one["score"] > 0.5}
    return {labels[0]["label"]}


def _places(answer: Answer) -> set[tuple[str, int, int]]:
    """What was found in a text, entities or tokens, and where."""
    found = cast("list[Entity] | list[Token]", answer)
    return {(str(one.get("entity_group", one.get("entity"))), one["start"], one["end"]) for one in found}


def _best(answer: Answer) -> Span:
    spans = cast("Span | list[Span]", answer)
    return spans[0] if isinstance(spans, list) else spans


def asked(item: Input, encoding: Encoding) -> NDArray[np.int32]:
    """The positions (P,) of `encoding` whose logits say something of single words; -1 for a word that was cut off.

    Of a text, every token but the special ones; else as `models.inputs.places` says.
    """
    found = places(item, encoding)
    if found is not None:
        return found
    return np.array([position for position, word in enumerate(encoding.word_ids) if word is not None], np.int32)


def _offsets(encoding: Encoding, positions: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.array(encoding.offsets, np.int64).reshape(-1, 2)[positions]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without the white space around it: some tokenizers count the space before a word to the word."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())


def _scores(values: NDArray[np.float64], function: Function) -> NDArray[np.float64]:
    """(C,) of logits (C,)."""
    if function == "none":
        return values
    if function == "sigmoid":
        # The form whose exponent is never positive cannot overflow.
        small = np.exp(-np.abs(values))
        return np.where(values >= 0, 1.0, small) / (1.0 + small)
    powers = np.exp(values - values.max())
    scores: NDArray[np.float64] = powers / powers.sum()
    return scores
