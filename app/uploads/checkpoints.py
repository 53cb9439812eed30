"""An uploaded checkpoint: safetensors, a config and a tokenizer, checked file by file before any of it is kept.

Names come from a list and are never joined to a path before they are on it; pickles and remote code are refused. The
weights' headers are read here by hand, for this process has no torch: each tensor's bytes are where its header says.
"""

import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from tokenizers import Tokenizer

from app.uploads.disk import on_disk
from models.errors import Invalid, Problem

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_JSON = {
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    _INDEX,
    # Of sentence-transformers: read by nobody here, and part of the folder that people have.
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
}
_TEXT = {"vocab.txt", "merges.txt", "README.md"}
_PICKLED = re.compile(r".*\.(?:bin|pt|pth|pkl|pickle|ckpt|joblib|npy|npz|h5|msgpack|mar|keras)", re.IGNORECASE)

MOST_FILES = 200
_LONGEST_JSON = 64 * 1024**2
_LONGEST_CONFIG = 2 * 1024**2
_LONGEST_HEADER = 16 * 1024**2
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds that may be opened."""

    config: dict[str, Any]
    parameters: int
    """Numbers in all tensors."""


def receive(files: Iterable[tuple[str, BinaryIO]], folder: Path) -> Checkpoint:
    """Copy the files, of which the names are the caller's, into the empty `folder`, and check them.

    Raises `Invalid` with the codes `file_not_allowed`, `unsafe_weights`, `missing_file`, `bad_config`, `remote_code`,
    `bad_weights`, `bad_tokenizer` or `vocabulary_mismatch`. The caller removes the folder then.
    """
    files = list(files)
    check_names([name for name, _ in files])
    for name, stream in files:
        stream.seek(0)
        with on_disk(name), (folder / name).open("xb") as copy:
            shutil.copyfileobj(stream, copy, 1024**2)
    return check(folder)


def check_names(names: list[str]) -> None:
    """Raises `Invalid` with every name that may not be uploaded."""
    problems = []
    for name in names:
        shown = repr(name if len(name) <= 80 else name[:79] + "…")
        if _PICKLED.fullmatch(name):
            problems.append(Problem("/files", f"{shown} can hold code; only safetensors are taken", "unsafe_weights"))
        elif not _allowed(name):
            problems.append(
                Problem("/files", f"{shown} is not a file of a checkpoint that is taken", "file_not_allowed")
            )
    problems += [
        Problem("/files", f"{name!r} was sent more than once", "file_not_allowed")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    present = set(names)
    problems += [
        Problem("/files", f"{name} is missing", "missing_file")
        for name in ("config.json", "tokenizer.json")
        if name not in present
    ]
    if not problems and not present & {_WEIGHTS, _INDEX}:
        problems.append(
            Problem("/files", f"the weights are missing: {_WEIGHTS}, or {_INDEX} and its shards", "missing_file")
        )
    if problems:
        # One dangerous file is what has to be said, whatever else is wrong.
        code = next((p.code for p in problems if p.code == "unsafe_weights"), problems[0].code)
        raise Invalid(
            problems[0].message
            if len(problems) == 1
            else f"{problems[0].message}, and {len(problems) - 1} more problems",
            code=code,
            hint="send config.json, tokenizer.json and model.safetensors (or its index and shards); "
            "tokenizer_config.json, special_tokens_map.json and vocab.txt if there are any; "
            "`save_pretrained(folder)` of a recent transformers writes them",
            problems=problems[:20],
        )


def check(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, whose file names have been checked. Drops what names files of another machine."""
    config = _read_object(folder / "config.json", _LONGEST_CONFIG, "bad_config")
    _refuse_code("config.json", config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", kind):
        _refuse("config.json says no model_type", "bad_config")
    for path in sorted(folder.iterdir()):
        if path.name in _JSON - {"config.json", _INDEX, "modules.json"}:
            document = _read_object(path, _LONGEST_JSON, "bad_config")
            _refuse_code(path.name, document)
            if path.name == "tokenizer_config.json":
                _keep_without_paths(path, document)
    _check_tokenizer(folder / "tokenizer.json", config)
    return Checkpoint(config, _check_weights(folder))


def _allowed(name: str) -> bool:
    return name in _JSON or name in _TEXT or name in {"tokenizer.json", _WEIGHTS} or bool(_SHARD.fullmatch(name))


def _refuse(message: str, code: str) -> NoReturn:
    raise Invalid.of([Problem("/files", message, code)])


# --- JSON -------------------------------------------------------------------------------------------------------------


def _read_object(path: Path, longest: int, code: str) -> dict[str, Any]:
    if path.stat().st_size > longest:
        _refuse(f"{path.name} has more than {longest // 1024**2} MB", code)
    return _parse(path.read_bytes(), path.name, code)


def _parse(document: bytes, name: str, code: str) -> dict[str, Any]:
    try:
        value = json.loads(document, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can be read and not be kept
    except RecursionError:
        _refuse(f"{name} is nested too deeply", code)
    except ValueError as error:
        where = f" ({error.msg} in line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        _refuse(f"{name} is not valid JSON{where}", code)
    if not isinstance(value, dict):
        _refuse(f"{name} is not a JSON object", code)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _refuse_code(name: str, document: Mapping[str, Any]) -> None:
    for key in ("auto_map", "custom_pipelines"):
        if document.get(key):
            _refuse(
                f"{name} has {key!r}, which names code to run; code that comes with a checkpoint is never run",
                "remote_code",
            )


def _keep_without_paths(path: Path, document: dict[str, Any]) -> None:
    """A tokenizer's config may say where other files are, and transformers would open them."""
    kept = {key: value for key, value in document.items() if not key.endswith(("_file", "_files"))}
    if kept != document:
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False), "utf-8")


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def _check_tokenizer(path: Path, config: Mapping[str, Any]) -> None:
    _read_object(path, _LONGEST_JSON, "bad_tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    except Exception as error:  # the library has no error of its own
        raise Invalid.of(
            [Problem("/files", f"tokenizer.json cannot be read: {str(error)[:200]}", "bad_tokenizer")]
        ) from error
    if largest < 0:
        _refuse("tokenizer.json has no tokens", "bad_tokenizer")
    size = config.get("vocab_size")
    if isinstance(size, int) and largest >= size:
        _refuse(
            f"tokenizer.json has tokens up to {largest}, and config.json says a vocab_size of {size}",
            "vocabulary_mismatch",
        )


# --- weights ----------------------------------------------------------------------------------------------------------


def _check_weights(folder: Path) -> int:
    """The number of parameters."""
    shards = sorted(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    if (folder / _WEIGHTS).exists():
        if shards or (folder / _INDEX).exists():
            _refuse(f"there are both {_WEIGHTS} and shards; send one or the other", "bad_weights")
        return sum(_tensors(folder / _WEIGHTS).values())
    places = _read_object(folder / _INDEX, _LONGEST_JSON, "bad_weights").get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        _refuse(f"{_INDEX} has no weight_map from tensors to files", "bad_weights")
    named = set(places.values())
    if not named <= set(shards):
        missing = sorted(named - set(shards))
        _refuse(
            f"{_INDEX} names {len(missing)} files that were not sent; the first is {missing[0][:80]!r}", "missing_file"
        )
    if not set(shards) <= named:
        _refuse(f"{_INDEX} does not name {min(set(shards) - named)}", "bad_weights")
    found = {shard: _tensors(folder / shard) for shard in shards}
    for tensor, place in places.items():
        if tensor not in found[place]:
            _refuse(f"{place} has no tensor {tensor[:80]!r}, which {_INDEX} puts there", "bad_weights")
    return sum(sum(sizes.values()) for sizes in found.values())


def _tensors(path: Path) -> dict[str, int]:
    """How many numbers each tensor has: eight bytes of length, a JSON header, then the data without gap or overlap."""
    name, size = path.name, path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            _refuse(f"{name} is not a safetensors file, or it was cut off", "bad_weights")
        if length > _LONGEST_HEADER:
            _refuse(f"{name} has a header of more than {_LONGEST_HEADER // 1024**2} MB", "bad_weights")
        header = _parse(stream.read(length), f"the header of {name}", "bad_weights")
    header.pop("__metadata__", None)
    counts, spans = {}, []
    for tensor, entry in header.items():
        try:
            count, begin, end = _tensor(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise Invalid.of(
                [Problem("/files", f"{name}: the entry of {tensor[:80]!r} is wrong", "bad_weights")]
            ) from error
        counts[tensor] = count
        spans.append((begin, end))
    expected = 0
    for begin, end in sorted(spans):
        if begin != expected:
            _refuse(f"{name}: its tensors overlap, or leave a gap", "bad_weights")
        expected = end
    if expected != size - 8 - length:
        _refuse(f"{name} was cut off, or goes on after its last tensor", "bad_weights")
    if not counts:
        _refuse(f"{name} has no tensors", "bad_weights")
    return counts


def _tensor(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    """The count of numbers, the first byte and the one after the last. Raises KeyError, TypeError, ValueError."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    numbers = (*shape, begin, end)
    if len(numbers) > 18 or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("not sizes")
    count = math.prod(shape)
    if (end - begin) * 8 != count * _BITS[entry["dtype"]]:
        raise ValueError("not its size")
    return count, begin, end
