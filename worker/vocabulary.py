"""A smaller vocabulary: a tokenizer cut to the tokens that some texts use, and which ids they had before.

Whatever could be encoded before still can be: every special token and every single character or byte stays, and a text
whose tokens all stay is cut into the very same tokens.

Does not know networks.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from models.errors import JobFailure
from models.inputs import Input, Pair, Question, Words

_CHUNK = 8192
# Rows of the table that no text ever reaches; they are the last to be kept.
_UNUSED = re.compile(r"\[unused\d+\]|<unused_?\d+>|madeupword\d+|<extra_id_\d+>", re.IGNORECASE)
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and, for each of its ids, the id that the same token had in the original's table: `kept` (V,)."""

    tokenizer: Any
    kept: NDArray[np.int64]

    def special_ids(self, settings: Mapping[str, Any]) -> dict[str, int | None]:
        """A config's `pad_token_id` and its like, in the new ids; None for one whose token is gone."""
        new = {int(old): index for index, old in enumerate(self.kept)}
        return {
            name: new.get(value)
            for name, value in settings.items()
            if name.endswith("_token_id") and isinstance(value, int)
        }


def texts_of(inputs: Iterable[Input]) -> list[str]:
    """Every piece of text in `inputs`: what a tokenizer will have to cut."""
    found: list[str] = []
    for item in inputs:
        match item:
            case str():
                found.append(item)
            case Pair(text, pair):
                found += [text, pair]
            case Words(words):
                found.append(" ".join(words))
            case Question(question, context):
                found += [question, context]
    return found


def no_smaller(why: str, pointer: str) -> JobFailure:
    """The refusal of a vocabulary that cannot be cut."""
    return JobFailure(
        f"the vocabulary cannot be made smaller: {why}",
        code="vocabulary_unsupported",
        hint="leave vocabulary out",
        pointer=pointer,
    )


def shrink(tokenizer: Any, texts: Sequence[str], size: int, *, pointer: str = "/student/vocabulary") -> Vocabulary:
    """`tokenizer` with `size` tokens: all that nothing may lack, then those that `texts` use most.

    The order of the tokens stays, and the padding token keeps its id where it can. Raises `JobFailure` with the code
    vocabulary_too_small (and the minimum) or vocabulary_unsupported.
    """
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    table = _table(document, pointer)
    added = {str(token["content"]): int(token["id"]) for token in document["added_tokens"]}
    ids = table | added
    named = {getattr(tokenizer, name) for name in _NAMED_TOKENS} - {None}
    needed = {*added, *(token for token in named if token in ids), *_indispensable(document["model"], table)}
    if size < len(needed):
        raise JobFailure(
            f"a vocabulary of {size} is too small: special tokens and single characters alone are {len(needed)}",
            code="vocabulary_too_small",
            hint=f"ask for at least {len(needed)}",
            pointer=pointer,
        )
    counts = _counts(tokenizer.backend_tokenizer, texts, max(ids.values()) + 1)
    ranked = sorted(
        (token for token in table if token not in needed),
        key=lambda token: (-int(counts[table[token]]), _UNUSED.fullmatch(token) is not None, table[token]),
    )
    chosen = _choose(document["model"], table, needed, ranked, size)
    inside = sorted((token for token in chosen if token in table), key=table.__getitem__)
    pad = tokenizer.pad_token
    if pad in table:
        inside.remove(pad)
        inside.insert(min(table[pad], len(inside)), pad)
    # The tokenizers library numbers added tokens that are not in its table after those that are.
    order = [*inside, *sorted((token for token in chosen if token not in table), key=ids.__getitem__)]
    _rewrite(document, {token: index for index, token in enumerate(order)}, pointer)
    return Vocabulary(_rebuilt(document, tokenizer), np.array([ids[token] for token in order], np.int64))


def _table(document: Mapping[str, Any], pointer: str) -> dict[str, int]:
    """The tokenizer's own tokens and their ids, without added ones."""
    model = document["model"]
    kind = model.get("type")
    if kind == "Unigram":
        pieces = [str(piece) for piece, _ in model["vocab"]]
        if len(set(pieces)) == len(pieces):
            return {piece: index for index, piece in enumerate(pieces)}
    # Marks at the ends of words make a merge's two parts differ from their text.
    marked = kind == "BPE" and (model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"))
    if kind == "WordPiece" or (kind == "BPE" and not marked):
        return dict(model["vocab"])
    raise no_smaller(f"the tokenizer is of the kind {kind!r}", pointer)


def _indispensable(model: Mapping[str, Any], table: Mapping[str, int]) -> set[str]:
    """Tokens without which some text that could be encoded no longer could be.

    Every single character or byte, and, of those tokens that are longer, each with a character that does not stand in
    the table by itself.
    """
    prefix = model.get("continuing_subword_prefix") or "" if model["type"] == "WordPiece" else ""
    singles = {token for token in table if len(token) == 1 or (prefix and len(token.removeprefix(prefix)) == 1)}
    singles |= {token for token in table if re.fullmatch(r"<0x[0-9A-F]{2}>", token)}
    if model["type"] == "BPE":
        return singles  # its tokens are merged from single characters, so a longer one never stands alone
    found = set(singles)
    if model["type"] == "Unigram":
        found.add(model["vocab"][model["unk_id"]][0])
    for token in table:
        inner = bool(prefix) and token.startswith(prefix)
        characters = token.removeprefix(prefix) if inner else token
        parts = [f"{prefix}{character}" if inner or place else character for place, character in enumerate(characters)]
        if not _UNUSED.fullmatch(token) and any(part not in singles for part in parts):
            found.add(token)
    return found


def _counts(backend: Tokenizer, texts: Sequence[str], size: int) -> NDArray[np.int64]:
    """How often each id stands in `texts`."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(texts), _CHUNK):
        found = backend.encode_batch_fast(list(texts[start : start + _CHUNK]), add_special_tokens=False)
        ids = [identifier for encoding in found for identifier in encoding.ids]
        counts += np.bincount(np.array(ids, np.int64), minlength=size)
    return counts


def _choose(
    model: Mapping[str, Any], table: Mapping[str, int], needed: Iterable[str], ranked: Sequence[str], size: int
) -> set[str]:
    """The needed tokens and the first ranked ones that fit. In BPE a token brings those that it is merged from."""
    chosen = set(needed)
    merges = _merges(model) if model["type"] == "BPE" else {}
    for token in ranked:
        if len(chosen) >= size:
            break
        parts = {part for part in _derivation(token, merges) if part in table} if merges else set()
        wanted = (parts | {token}) - chosen
        if len(chosen) + len(wanted) <= size:
            chosen |= wanted
    return chosen


def _merges(model: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """A merge's two parts to its rank. Older files write the parts as one text with a space."""
    pairs = (tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
    return {cast("tuple[str, str]", pair): rank for rank, pair in enumerate(pairs)}


def _derivation(token: str, merges: Mapping[tuple[str, str], int]) -> set[str]:
    """Every token that stands there for a while when BPE builds `token` out of its characters.

    Inside of a text the same merges happen in the same order, because none crosses the token's ends.
    """
    parts = list(token)
    seen = set(parts)
    while len(parts) > 1:
        pairs = [(merges[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in merges]
        if not pairs:
            break
        _, place = min(pairs)
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
        seen.add(parts[place])
    return seen


def _rewrite(document: dict[str, Any], new: Mapping[str, int], pointer: str) -> None:
    """Puts the new ids everywhere in a `tokenizer.json` that an id stands."""
    model = document["model"]
    if model["type"] == "Unigram":
        scores = dict(model["vocab"])
        unknown = model["vocab"][model["unk_id"]][0]
        model["vocab"] = [[token, scores[token]] for token in new if token in scores]
        model["unk_id"] = new[unknown]
    else:
        model["vocab"] = {token: index for token, index in new.items() if token in model["vocab"]}
    if model["type"] == "BPE":
        model["merges"] = [
            list(pair) for pair in _merges(model) if pair[0] in new and pair[1] in new and "".join(pair) in new
        ]
    for token in document["added_tokens"]:
        token["id"] = new[token["content"]]
    document["added_tokens"].sort(key=lambda token: token["id"])
    document["padding"] = document["truncation"] = None
    _rewrite_processor(document.get("post_processor"), new, pointer)


def _rewrite_processor(processor: dict[str, Any] | None, new: Mapping[str, int], pointer: str) -> None:
    match processor:
        case None | {"type": "ByteLevel"}:
            return
        case {"type": "Sequence", "processors": processors}:
            for part in processors:
                _rewrite_processor(part, new, pointer)
        case {"type": "TemplateProcessing", "special_tokens": tokens}:
            for entry in tokens.values():
                entry["ids"] = [new[token] for token in entry["tokens"]]
        case {"type": "BertProcessing" | "RobertaProcessing"}:
            for name in ("sep", "cls"):
                processor[name] = [processor[name][0], new[processor[name][0]]]
        case _:
            raise no_smaller(f"the tokenizer's post-processor is of the kind {processor.get('type')!r}", pointer)


def _rebuilt(document: Mapping[str, Any], original: Any) -> Any:
    """A fast tokenizer around `document`, with the original's named tokens and manners.

    Not of the original's class: some classes build their parts anew from a few settings when they are loaded, and this
    one takes `tokenizer.json` as it is, as the server does.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        model_max_length=original.model_max_length,
        model_input_names=list(original.model_input_names),
        padding_side=original.padding_side,
        truncation_side=original.truncation_side,
        clean_up_tokenization_spaces=False,
        **{name: getattr(original, name) for name in _NAMED_TOKENS if getattr(original, name) is not None},
    )
