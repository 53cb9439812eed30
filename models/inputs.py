"""What a network is asked, and how a tokenizer cuts it: the same in training, in measuring and in serving.

A long context is read in windows, so that one input may become several encodings. Every encoding has *places*: the
token positions whose outputs mean something, one for each word of a row of words, one for each token of a context.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

_CHUNK = 8192
_GLUED = b'"add_prefix_space":false'


@dataclass(frozen=True)
class Pair:
    text: str
    text_pair: str


@dataclass(frozen=True)
class Words:
    """A text that is cut into words already."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    question: str
    context: str


Input = str | Pair | Words | Question


def canonical(item: Input) -> str:
    """The one spelling of an input, for keys and for telling equal rows."""
    match item:
        case str():
            return item
        case Pair(text, pair):
            return json.dumps([text, pair], ensure_ascii=False)
        case Words(words):
            return json.dumps(list(words), ensure_ascii=False)
        case Question(question, context):
            return json.dumps([question, context], ensure_ascii=False)


def as_json(item: Input) -> Any:
    """An input as `/predict` takes it; words are one text again."""
    match item:
        case str():
            return item
        case Pair(text, pair):
            return {"text": text, "text_pair": pair}
        case Words(words):
            return " ".join(words)
        case Question(question, context):
            return {"question": question, "context": context}


def of_json(document: Any) -> Input:
    """An input that `as_json` wrote. Raises `ValueError` for anything else."""
    match document:
        case str():
            return document
        case {"text": str(text), "text_pair": str(pair)}:
            return Pair(text, pair)
        case {"question": str(question), "context": str(context)}:
            return Question(question, context)
        case _:
            raise ValueError("this is no input")


def encode(
    tokenizer: Tokenizer, inputs: Sequence[Input], *, max_length: int, stride: int = 0, offsets: bool = False
) -> list[list[Encoding]]:
    """For each input its encodings, special tokens included, none longer than `max_length`, not padded.

    All `inputs` are of one kind. A `Question` is cut into windows over its context that share `stride` tokens; the
    question comes first, and one that takes more than half of the room is cut to that half (where a question leaves
    little room, the windows share half of it). Anything else is one encoding, cut at its end, of a pair the longer side
    first. `offsets`: whether the encodings know where in the text their tokens stand, which costs a little more;
    questions and words always do.

    Sets the tokenizer's own truncation and padding where they are not what this needs. While all inputs of a tokenizer
    are texts or pairs of one `max_length` it changes nothing after the first call, so that threads may share it.
    """
    if tokenizer.padding is not None:
        tokenizer.no_padding()
    if any(isinstance(item, Question) for item in inputs):
        return _windows(tokenizer, [item for item in inputs if isinstance(item, Question)], max_length, stride)
    if any(isinstance(item, Words) for item in inputs):
        separate_words(tokenizer)
    _truncate(tokenizer, max_length)
    found: list[list[Encoding]] = []
    for start in range(0, len(inputs), _CHUNK):
        chunk = inputs[start : start + _CHUNK]
        if isinstance(chunk[0], Words):
            words = [list(item.words) for item in chunk if isinstance(item, Words)]
            encodings = tokenizer.encode_batch(words, is_pretokenized=True)
        else:
            # The batch calls let go of the interpreter's lock, which `encode` does not; the fast one makes no offsets.
            texts = [(item.text, item.text_pair) if isinstance(item, Pair) else item for item in chunk]
            encodings = tokenizer.encode_batch(texts) if offsets else tokenizer.encode_batch_fast(texts)
        found += [[encoding] for encoding in encodings]
    return found


def places(item: Input, encoding: Encoding) -> NDArray[np.int32] | None:
    """The token positions of `encoding` that are asked; None where the text as a whole is.

    `Words` (P = number of words): the first token of each word, -1 for a word that was cut off or has no token.
    `Question`: 0, which stands for "no answer here", and every token of the context. A `str` has none here: of a text
    whose words are asked, `models.runtime` takes the words that the tokenizer sees.
    """
    match item:
        case Words(words):
            first = np.full(len(words), -1, np.int32)
            for position, word in reversed(list(enumerate(encoding.word_ids))):
                if word is not None:
                    first[word] = position
            return first
        case Question():
            context = [position for position, side in enumerate(encoding.sequence_ids) if side == 1]
            return np.array([0, *context], np.int32)
        case _:
            return None


def separate_words(tokenizer: Tokenizer) -> None:
    """Let `tokenizer` read the first word of a text as it reads one after a space, and so each of a row of `Words`.

    A byte-level tokenizer (RoBERTa's, ModernBERT's) has other tokens for a word at the very beginning. `encode` calls
    this for `Words`; whoever asks for the words of a text calls it first.
    """
    if tokenizer.pre_tokenizer is None or _GLUED not in tokenizer.pre_tokenizer.__getstate__():
        return
    document = json.loads(tokenizer.to_str())
    parts = [document["pre_tokenizer"], document["post_processor"] or {}]
    parts += [inner for part in parts for name in ("pretokenizers", "processors") for inner in part.get(name, ())]
    for part in parts:
        if "add_prefix_space" in part:
            part["add_prefix_space"] = True
    other = Tokenizer.from_str(json.dumps(document))
    tokenizer.pre_tokenizer = other.pre_tokenizer
    tokenizer.post_processor = other.post_processor


def _truncate(tokenizer: Tokenizer, max_length: int, stride: int = 0, strategy: str = "longest_first") -> None:
    wanted = {"max_length": max_length, "stride": stride, "strategy": strategy, "direction": "right"}
    if tokenizer.truncation != wanted:
        tokenizer.enable_truncation(max_length, stride=stride, strategy=strategy)


def _windows(tokenizer: Tokenizer, questions: Sequence[Question], max_length: int, stride: int) -> list[list[Encoding]]:
    room = max_length - tokenizer.num_special_tokens_to_add(is_pair=True)
    tokenizer.no_truncation()
    counts: list[int] = []
    asked: list[str] = []
    for start in range(0, len(questions), _CHUNK):
        texts = [item.question for item in questions[start : start + _CHUNK]]
        for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            kept, count = _shortened(tokenizer, text, encoding, room // 2)
            asked.append(kept)
            counts.append(count)
    by_stride: dict[int, list[int]] = {}
    for row, count in enumerate(counts):
        by_stride.setdefault(min(stride, (room - count) // 2), []).append(row)
    found: list[list[Encoding]] = [[] for _ in questions]
    for shared, rows in by_stride.items():
        _truncate(tokenizer, max_length, shared, "only_second")
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            encodings = tokenizer.encode_batch([(asked[row], questions[row].context) for row in chunk])
            for row, encoding in zip(chunk, encodings, strict=True):
                found[row] = [encoding, *encoding.overflowing]
    return found


def _shortened(tokenizer: Tokenizer, text: str, encoding: Encoding, longest: int) -> tuple[str, int]:
    """The beginning of `text` that has at most `longest` tokens, and how many it has."""
    while len(encoding.ids) > longest:
        # A text that was cut may have more tokens than the same stretch had before, so it is looked at again.
        text = text[: min(encoding.offsets[longest][0], len(text) - 1)]
        encoding = tokenizer.encode(text, add_special_tokens=False)
    return text, len(encoding.ids)
