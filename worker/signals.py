"""What a network says of a row, kept so that nothing is computed twice; and what makes a network the same network.

A signal here is a row of raw logits, float32, exact at any temperature. It is kept by row, never by step, so that
shuffling, accumulation, several processes and a resumed run cannot pair a row with another row's answer. The key of a
teacher is over everything that decides its answers except the row; the key of a row is over the task's template and
the text.

Also here, because teachers and students both begin with it: `open_folder`, which reads a network and its tokenizer from
a folder. Only safetensors are read, and no code that lies beside them is ever run.

Does not know where folders come from, what a student is, or how a network is trained.
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from models.errors import JobFailure

# What transformers raises over a folder that it cannot read; it has no error of its own.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


# --- a network in a folder --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A classifier in evaluation mode, in float32, and its tokenizer.

    Where `answers` is true the head came with the checkpoint, its labels are those that were asked for, and its rows
    have been put into their order. Otherwise the head's last layer is drawn afresh and has to be trained.
    """

    network: PreTrainedModel
    tokenizer: Any
    answers: bool
    has_head: bool
    own_labels: tuple[str, ...]
    """The checkpoint's own label names, in its own order, after renaming."""


def open_folder(
    folder: Path, labels: Sequence[str], *, seed: int, pointer: str, renamed: Mapping[str, str] | None = None
) -> Opened:
    """The classifier in `folder` with one output for each of `labels`, in their order.

    `renamed` gives names to the checkpoint's own labels. What has to be drawn is drawn from `seed`; the global random
    state is left as it was. Raises `JobFailure` with the code `teacher_unreadable` or `unsafe_weights`.
    """
    check_folder(folder, pointer)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        own = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
        own = tuple((renamed or {}).get(name, name) for name in own)
        order = label_order(own, labels)
        # The setter of num_labels replaces the names, so it comes first.
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
        config.problem_type = "single_label_classification"
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds every GPU too
            network, loading = AutoModelForSequenceClassification.from_pretrained(
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
    if getattr(tokenizer, "backend_tokenizer", None) is None or tokenizer.pad_token_id is None:
        raise JobFailure(
            "the checkpoint's tokenizer has no fast form or no padding token",
            code="teacher_unreadable",
            pointer=pointer,
        )
    # Some published tokenizers pad every text to a fixed length; that belongs to their demo, not to the checkpoint.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    has_head = _has_head(network, loading, pointer)
    if not has_head or order is None:
        _draw_head(network, len(labels), seed)
    else:
        _reorder_head(network, order, pointer)
    return Opened(network, tokenizer, has_head and order is not None, has_head, own)


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


def _has_head(network: PreTrainedModel, loading: Mapping[str, Any], pointer: str) -> bool:
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
    # A last layer of another size is a head for other labels; one that is missing altogether is none.
    last = _last_layer(network, network.config.num_labels)
    names = {name for name, module in network.named_modules() if module is last}
    return not {key for key in missing if key not in mismatched} and bool(names)


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

    def logits(
        self, teacher_key: str, row_keys: Sequence[str], *, classes: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The known logits (N, C), NaN in the rows that are not known, and the indices of those rows.

        Where nothing is known C is `classes`, or 0 without it. A file with another number of classes counts as absent.
        """
        path = self._path(teacher_key)
        known = _read(path)
        if known is None or (classes is not None and known[1].shape[1] != classes):
            return np.full((len(row_keys), classes or 0), np.nan, np.float32), np.arange(len(row_keys))
        keys, values = known
        with suppress(FileNotFoundError):  # evicted by another process meanwhile; what was read is still true
            os.utime(path)
        place = {key: index for index, key in enumerate(keys)}
        at = np.array([place.get(bytes.fromhex(key), -1) for key in row_keys], np.int64)
        found = np.full((len(row_keys), values.shape[1]), np.nan, np.float32)
        found[at >= 0] = values[at[at >= 0]]
        return found, np.flatnonzero(at < 0)

    def store(self, teacher_key: str, row_keys: Sequence[str], logits: NDArray[np.float32]) -> None:
        """Adds `logits` (N, C) for `row_keys`; a row that is already there is replaced."""
        if logits.ndim != 2 or len(row_keys) != len(logits):
            raise ValueError(f"{len(row_keys)} keys do not fit logits of shape {logits.shape}")
        path = self._path(teacher_key)
        with self._locked():
            known = _read(path)
            merged: dict[bytes, NDArray[np.float32]] = {}
            if known is not None and known[1].shape[1] == logits.shape[1]:
                merged = dict(zip(known[0], known[1], strict=True))
            merged |= zip((bytes.fromhex(key) for key in row_keys), logits.astype(np.float32), strict=True)
            _write(path, list(merged), np.stack(list(merged.values())) if merged else logits)
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


def _read(path: Path) -> tuple[list[bytes], NDArray[np.float32]] | None:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        keys = table.column("key").to_pylist()
        column = table.column("logits").combine_chunks()
        values = np.asarray(column.flatten(), np.float32).reshape(len(keys), column.type.list_size)
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError):
        return None
    return keys, values


def _write(path: Path, keys: list[bytes], logits: NDArray[np.float32]) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel(), pa.float32()), logits.shape[1])
    table = pa.table({"key": pa.array(keys, pa.binary(32)), "logits": values})
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
