"""Reads a network and its tokenizer from a folder, with the head that a task needs; and what makes two the same.

Only safetensors are read, and no code that lies beside them is ever run.

Does not know where folders come from, what a student is, or how a network is trained.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from models.errors import JobFailure
from models.inputs import separate_words
from models.specs import (
    QuestionAnswering,
    Task,
    Text2Text,
    TextClassification,
    TextGeneration,
    TextRegression,
    TokenClassification,
)

# What transformers raises over a folder that it cannot read; it has no error of its own.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


# --- a network in a folder --------------------------------------------------------------------------------------------


Head = Literal["one_label", "labels", "number", "tags", "span"]
"""What a network ends in: logits of which label is true, of which labels are, a number, a tag for each token, or where
an answer begins and ends."""

_CLASSES: Mapping[Head, Any] = {
    "one_label": AutoModelForSequenceClassification,
    "labels": AutoModelForSequenceClassification,
    "number": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
}
_SUFFIXES: Mapping[Head, str] = {
    "one_label": "ForSequenceClassification",
    "labels": "ForSequenceClassification",
    "number": "ForSequenceClassification",
    "tags": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}
_PROBLEMS: Mapping[Head, str | None] = {
    "one_label": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
    "tags": None,
    "span": None,
}
_SPAN_OUTPUTS = ("start", "end")


def head_of(task: Task) -> Head:
    """The head that `task` needs. Raises `JobFailure` (`not_available_yet`) for a task without one."""
    match task:
        case TextClassification():
            return "labels" if task.multi_label else "one_label"
        case TextRegression():
            return "number"
        case TokenClassification():
            return "tags"
        case QuestionAnswering():
            return "span"
        case TextGeneration() | Text2Text():
            raise JobFailure(
                "generating text is not available in this version", code="not_available_yet", pointer="/task/kind"
            )
        case _:
            assert_never(task)


def class_of(head: Head) -> Any:
    """The transformers class that opens or makes a network with this head."""
    return _CLASSES[head]


def name_outputs(config: Any, head: Head, labels: Sequence[str]) -> None:
    """Tell a network's config what its outputs are: `labels`, in order; start and end of a span have no labels."""
    names = _SPAN_OUTPUTS if head == "span" else labels
    # The setter of num_labels replaces the names, so it comes first.
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = _PROBLEMS[head]


@dataclass(frozen=True)
class Opened:
    """A network with a head, in evaluation mode, in float32, and its tokenizer.

    Where `answers` is true the head came with the checkpoint, its labels are those that were asked for, and its rows
    have been put into their order. Otherwise the head's last layer is drawn afresh and has to be trained.
    """

    network: PreTrainedModel
    tokenizer: Any
    answers: bool
    has_head: bool
    own_labels: tuple[str, ...]
    """The checkpoint's own label names, in its own order, after renaming; empty where outputs have no labels."""


def open_folder(
    folder: Path,
    labels: Sequence[str],
    *,
    head: Head,
    seed: int,
    pointer: str,
    renamed: Mapping[str, str] | None = None,
) -> Opened:
    """The network in `folder` with a head that has one output for each of `labels`, in their order.

    A number has one output and a span two; neither is looked up by name. `renamed` gives names to the checkpoint's own
    labels. What has to be drawn is drawn from `seed`; the global random state is left as it was. Raises `JobFailure`
    with the code `teacher_unreadable` or `unsafe_weights`.
    """
    check_folder(folder, pointer)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        own: tuple[str, ...] = ()
        order: list[int] | None = None
        if head not in ("number", "span"):
            own = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
            own = tuple((renamed or {}).get(name, name) for name in own)
            order = label_order(own, labels)
        made_for = tuple(config.architectures or ())
        name_outputs(config, head, labels)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds every GPU too
            network, loading = class_of(head).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except _UNREADABLE as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise JobFailure(
            f"the checkpoint cannot be opened: {first}", code="teacher_unreadable", pointer=pointer
        ) from error
    network = network.eval()
    _prepare(tokenizer, head, pointer)
    # Different heads share names: a text's one label and the tags of tokens both come from a layer `classifier`.
    meant = not made_for or any(name.endswith(_SUFFIXES[head]) for name in made_for)
    has_head = _has_head(network, loading, head, pointer) and meant
    answers = has_head and (order is not None or head in ("number", "span"))
    if not answers:
        _draw_head(network, network.config.num_labels, seed)
    elif order is not None:
        _reorder_head(network, order, pointer)
    return Opened(network, tokenizer, answers, has_head, own)


def _prepare(tokenizer: Any, head: Head, pointer: str) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.pad_token_id is None:
        raise JobFailure(
            "the checkpoint's tokenizer has no fast form or no padding token",
            code="teacher_unreadable",
            pointer=pointer,
        )
    # Some published tokenizers pad every text to a fixed length; that belongs to their demo, not to the checkpoint.
    backend.no_padding()
    backend.no_truncation()
    if head == "tags":
        separate_words(backend)


def check_folder(folder: Path, pointer: str) -> None:
    """Refuses a folder that is no checkpoint, or that could only be opened by unpickling or by running its code."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise JobFailure(
            "the folder has no readable config.json", code="teacher_unreadable", pointer=pointer
        ) from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise JobFailure("its config.json does not say its model_type", code="teacher_unreadable", pointer=pointer)
    if (folder / "adapter_config.json").exists():
        raise JobFailure(
            "the folder holds an adapter, not a whole checkpoint",
            code="teacher_unreadable",
            hint="merge the adapter into its base network and save that as safetensors",
            pointer=pointer,
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        raise JobFailure(
            f"the weights are pickled ({pickled[0]}), and opening a pickle runs its code"
            if pickled
            else "the folder has no *.safetensors file",
            code="unsafe_weights" if pickled else "teacher_unreadable",
            hint="save it again with `save_pretrained(folder)`, which writes safetensors",
            pointer=pointer,
        )
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise JobFailure(f"{index.name} cannot be read", code="teacher_unreadable", pointer=pointer) from error
        # An index may name any file: one outside the folder would be somebody else's weights.
        if any(not isinstance(shard, str) or Path(shard).name != shard for shard in shards):
            raise JobFailure(f"{index.name} names files outside its folder", code="unsafe_weights", pointer=pointer)


def label_order(own: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """For each of `labels`, the position of the same label in `own`; None where the two are not the same set.

    Upper and lower case are told apart only if that is needed. `LABEL_0`, `LABEL_1`, …, which a checkpoint has whose
    labels were never named, stand for the integer labels 0, 1, … and for nothing else.
    """
    if list(own) == [f"LABEL_{index}" for index in range(len(own))]:
        own = [str(index) for index in range(len(own))]
    for form in (str, str.casefold):
        there, wanted = [form(name) for name in own], [form(name) for name in labels]
        if len(set(there)) == len(there) and len(set(wanted)) == len(wanted) and set(there) == set(wanted):
            return [there.index(name) for name in wanted]
    return None


def positions(network: PreTrainedModel) -> int | None:
    """How many tokens one text may have, special tokens included; None where nothing limits it."""
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's kind counts positions from the padding id on.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    limit = getattr(network.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_positions(network: PreTrainedModel, max_length: int, who: str) -> None:
    """Raises `JobFailure` (`max_length_too_long`) where `network` cannot read texts of `max_length` tokens."""
    limit = positions(network)
    if limit is not None and max_length > limit:
        raise JobFailure(
            f"the {who} reads at most {limit} tokens, and the task asks for {max_length}",
            code="max_length_too_long",
            hint=f"ask for at most {limit}",
            pointer="/task/max_length",
        )


def _has_head(network: PreTrainedModel, loading: Mapping[str, Any], head: Head, pointer: str) -> bool:
    prefix = f"{network.base_model_prefix}."
    missing = {str(key) for key in loading["missing_keys"]}
    mismatched = {str(item[0]) if isinstance(item, tuple) else str(item) for item in loading["mismatched_keys"]}
    # Networks published for embedding or filling masks often lack the pooler; it is drawn and trained with the head.
    torn = sorted(key for key in missing | mismatched if key.startswith(prefix) and "pooler" not in key)
    if torn:
        raise JobFailure(
            f"the checkpoint lacks weights that its config.json asks for: {torn[0]}"
            + (f" and {len(torn) - 1} more" if len(torn) > 1 else ""),
            code="teacher_unreadable",
            pointer=pointer,
        )
    if _last_layer(network, network.config.num_labels) is None or missing - mismatched:
        return False
    # A last layer of another size is a head for other labels; a number or a span has none to be of.
    return not mismatched or head not in ("number", "span")


def _last_layer(network: PreTrainedModel, outputs: int) -> nn.Linear | None:
    """The linear layer that gives the logits: the last one outside the body with so many outputs."""
    body = {id(module) for module in network.base_model.modules()}
    found = [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear) and id(module) not in body and module.out_features == outputs
    ]
    return found[-1] if found else None


def _draw_head(network: PreTrainedModel, outputs: int, seed: int) -> None:
    last = _last_layer(network, outputs)
    if last is not None:
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(last.weight, std=getattr(network.config, "initializer_range", 0.02), generator=generator)
        if last.bias is not None:
            nn.init.zeros_(last.bias)


def _reorder_head(network: PreTrainedModel, order: Sequence[int], pointer: str) -> None:
    last = _last_layer(network, len(order))
    if last is None:
        raise JobFailure("the checkpoint's head was not found", code="teacher_unreadable", pointer=pointer)
    with torch.no_grad():
        last.weight.copy_(last.weight[list(order)].clone())
        if last.bias is not None:
            last.bias.copy_(last.bias[list(order)].clone())


# --- identity ---------------------------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> str:
    """SHA-256 over the weights, the config and the tokenizer in `folder`: the same answers, the same fingerprint."""
    digest = hashlib.sha256()
    names = {"config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    names |= {"vocab.txt", "vocab.json", "merges.txt"}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name in names or path.suffix in {".safetensors", ".model"}:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()


def fingerprint_of(network: PreTrainedModel, tokenizer: Any) -> str:
    """The same for a network in memory: SHA-256 over its weights, its label names in order, and its tokenizer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().to("cpu").contiguous()
        digest.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\n".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    labels = [str(network.config.id2label[index]) for index in sorted(network.config.id2label)]
    digest.update(json.dumps([type(network).__name__, labels]).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()
