"""Builds a student before its training: from the teacher's own layers, of random weights, or from another checkpoint.

Most of a small encoder's parameters are its embedding, so a student may keep only the tokens that its training rows
use. Its tokenizer is then rebuilt to match. Whatever could be encoded before still can be: every special token and
every single character or byte stays, and a text whose tokens all stay is cut into the very same tokens.

Does not know datasets, objectives or training.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, assert_never, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from models.errors import JobFailure
from models.specs import FreshStudent, PretrainedStudent, StudentFromTeacher
from models.specs import Student as StudentSpec
from worker.signals import check_positions, open_folder, positions

_CHUNK = 8192
# Rows of the table that no text ever reaches; they are the last to be kept.
_UNUSED = re.compile(r"\[unused\d+\]|<unused_?\d+>|madeupword\d+|<extra_id_\d+>", re.IGNORECASE)
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Original(Protocol):
    """What a student is made from: `teachers.OpenTeacher` is one."""

    @property
    def network(self) -> PreTrainedModel: ...

    @property
    def tokenizer(self) -> Any: ...


@dataclass(frozen=True)
class Student:
    """A classifier in evaluation mode, float32, on the CPU, and its fast tokenizer."""

    network: PreTrainedModel
    tokenizer: Any


def build(
    spec: StudentSpec,
    teacher: Original,
    train_texts: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int,
    find_folder: Callable[[str], Path],
    max_length: int | None = None,
    pointer: str = "/stages/0/student",
) -> Student:
    """The student that `spec` describes, with one output for each of `labels`, in their order.

    `train_texts` decide which tokens a smaller vocabulary keeps. `find_folder` turns the reference of a pretrained
    student into a checked folder; its network must be able to read `max_length` tokens. The same arguments give the
    same weights; the teacher and the global random state are left as they were. The codes of the `JobFailure` are
    impossible_layers, vocabulary_too_small, vocabulary_unsupported, architecture_unsupported, max_length_too_long, and
    those of opening a folder.
    """
    match spec:
        case StudentFromTeacher():
            chosen = _chosen_layers(spec, teacher.network, pointer)
            vocabulary = _vocabulary(spec.vocabulary, teacher, train_texts, pointer)
            return _from_teacher(teacher, chosen, vocabulary, pointer)
        case FreshStudent():
            vocabulary = _vocabulary(spec.vocabulary, teacher, train_texts, pointer)
            return _fresh(spec, teacher, vocabulary, labels, seed)
        case PretrainedStudent():
            opened = open_folder(find_folder(spec.model), labels, seed=seed, pointer=f"{pointer}/model")
            if max_length is not None:
                check_positions(opened.network, max_length, "student")
            return Student(opened.network, opened.tokenizer)
        case _:
            assert_never(spec)


def parameters(network: nn.Module) -> tuple[int, int]:
    """How many parameters there are: all, and those outside of embedding tables (tokens, positions, segments)."""
    every = {id(parameter): parameter.numel() for parameter in network.parameters()}
    tables = {
        id(parameter): parameter.numel()
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    return sum(every.values()), sum(every.values()) - sum(tables.values())


# --- layers -----------------------------------------------------------------------------------------------------------


def uniform_layers(teacher: int, student: int) -> list[int]:
    """Which of `teacher` layers (0-based) a student of `student` layers takes: TinyBERT's uniform map (1909.10351).

    `state(j) = ⌊j·N/M + ½⌋`, `layer(j) = state(j+1) − 1`: 12 → 4 gives 2, 5, 8, 11. Raises `ValueError` if M > N.
    """
    if not 1 <= student <= teacher:
        raise ValueError(f"{student} layers cannot be taken from {teacher}")
    # ⌊j·N/M + ½⌋ in integers.
    return [(2 * (j + 1) * teacher + student) // (2 * student) - 1 for j in range(student)]


def _chosen_layers(spec: StudentFromTeacher, network: PreTrainedModel, pointer: str) -> list[int]:
    there = int(network.config.num_hidden_layers)
    if spec.layers is None:
        return list(range(there))
    if isinstance(spec.layers, int):
        if spec.layers > there:
            raise JobFailure(
                f"the teacher has {there} layers, and {spec.layers} are asked for",
                code="impossible_layers",
                pointer=f"{pointer}/layers",
            )
        return uniform_layers(there, spec.layers)
    wrong = [layer for layer in spec.layers if layer >= there]
    if wrong:
        raise JobFailure(
            f"the teacher has the layers 0 to {there - 1}, and {wrong[0]} is asked for",
            code="impossible_layers",
            pointer=f"{pointer}/layers",
        )
    return list(spec.layers)


def _layer_list(network: PreTrainedModel, pointer: str) -> str:
    """The name of the module list that holds the layers."""
    there = network.config.num_hidden_layers
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == there and len({type(layer) for layer in module}) == 1
    ]
    # Lists inside of a layer (a mixture's experts) are not the layers, however many they are.
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found if other != name)]
    if len(outer) != 1:
        raise _unsupported(network, pointer)
    return str(outer[0])


def _unsupported(network: PreTrainedModel, pointer: str) -> JobFailure:
    return JobFailure(
        f"a student cannot be cut out of a {network.config.model_type!r} network",
        code="architecture_unsupported",
        hint="use a student of the kind pretrained or fresh; BERT, RoBERTa, DistilBERT and ELECTRA can be cut",
        pointer=f"{pointer}/kind",
    )


def _from_teacher(teacher: Original, chosen: Sequence[int], vocabulary: "Vocabulary", pointer: str) -> Student:
    network = teacher.network
    layers = _layer_list(network, pointer)
    embedding = network.get_input_embeddings()
    table = next(name for name, module in network.named_modules() if module is embedding) + ".weight"
    settings = network.config.to_dict()
    # Families with layers of several kinds name the kind of each.
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(settings.get(name), list) and len(settings[name]) == network.config.num_hidden_layers:
            settings[name] = [settings[name][layer] for layer in chosen]
    depth = getattr(network.config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    settings |= {depth: len(chosen), "vocab_size": len(vocabulary.kept), **vocabulary.special_ids(settings)}
    weights: dict[str, Tensor] = {}
    place = {layer: index for index, layer in enumerate(chosen)}
    for name, tensor in network.state_dict().items():
        target = name
        if name.startswith(f"{layers}."):
            layer, _, rest = name.removeprefix(f"{layers}.").partition(".")
            if int(layer) not in place:
                continue
            target = f"{layers}.{place[int(layer)]}.{rest}"
        weights[target] = tensor[torch.from_numpy(vocabulary.kept)] if name == table else tensor
    try:
        with torch.random.fork_rng(devices=[]):
            student = type(network)(type(network.config).from_dict(settings))
        student.load_state_dict({name: tensor.detach().to("cpu", torch.float32) for name, tensor in weights.items()})
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _unsupported(network, pointer) from error
    return Student(student.eval(), vocabulary.tokenizer)


def _fresh(
    spec: FreshStudent, teacher: Original, vocabulary: "Vocabulary", labels: Sequence[str], seed: int
) -> Student:
    config = BertConfig(
        vocab_size=len(vocabulary.kept),
        num_hidden_layers=spec.layers,
        hidden_size=spec.hidden_size,
        num_attention_heads=spec.heads,
        intermediate_size=spec.intermediate_size,
        max_position_embeddings=positions(teacher.network) or 512,
        pad_token_id=vocabulary.tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds every GPU too
        network = BertForSequenceClassification(config)
    return Student(network.eval(), vocabulary.tokenizer)


# --- vocabulary -------------------------------------------------------------------------------------------------------


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


def _vocabulary(size: int | None, teacher: Original, texts: Sequence[str], pointer: str) -> Vocabulary:
    rows = int(teacher.network.get_input_embeddings().num_embeddings)
    if size is None or size >= min(rows, len(teacher.tokenizer)):
        return Vocabulary(teacher.tokenizer, np.arange(rows, dtype=np.int64))
    vocabulary = shrink(teacher.tokenizer, texts, size, pointer=f"{pointer}/vocabulary")
    # RoBERTa's kind counts positions from the padding id on, so that id may not move.
    moved = vocabulary.tokenizer.pad_token_id != teacher.tokenizer.pad_token_id
    counted = any(
        name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
        for name, module in teacher.network.named_modules()
    )
    if moved and counted:
        raise _no_smaller("its positions are counted from a padding id that would move", f"{pointer}/vocabulary")
    return vocabulary


def _no_smaller(why: str, pointer: str) -> JobFailure:
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
    raise _no_smaller(f"the tokenizer is of the kind {kind!r}", pointer)


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
            raise _no_smaller(f"the tokenizer's post-processor is of the kind {processor.get('type')!r}", pointer)


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
