"""Checkpoints: safetensors and JSON in a folder that is whole or absent, never half there.

    <folder>/<unit>/step-000000000120/   tensors.safetensors  state.json  manifest.json (SHA-256 and size of both)
    <folder>/<unit>/finished/            the same, when the unit is done

A *unit* is one network's training, such as `distilled-0-0` (arm, stage, phase). Everything is written under a temporary
name, fsynced, and renamed. What does not match its manifest is passed over for the one before.

Knows no network, optimizer or schedule: tensors by name, and a JSON object.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import StorageFailure

FORMAT = 1

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_FINISHED = "finished"
_STEP = re.compile(r"step-(\d{12})")
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# safetensors reports an operating system's error as text: no space (28), quota (122), file too large (27).
_FULL = re.compile(r"os error (?:27|28|122)\b|code: (?:27|28|122)\b")


@dataclass(frozen=True)
class Checkpoint:
    unit: str
    step: int
    tensors: dict[str, Tensor]
    """On the CPU."""
    state: dict[str, Any]
    path: Path


class Checkpoints:
    """The checkpoints of one attempt, which also finds those of the attempts before it.

    `folder`: written and read. `previous`: only read, newest attempt first. `keep`: so many checkpoints of a unit stay,
    the newest ones. `on_damaged` is told of each checkpoint that is passed over.
    """

    def __init__(
        self,
        folder: Path,
        previous: Sequence[Path] = (),
        keep: int = 2,
        on_damaged: Callable[[Path], object] | None = None,
    ) -> None:
        self.folder = folder
        self.previous = tuple(previous)
        self.keep = keep
        self.on_damaged = on_damaged

    def save(self, unit: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and removes the unit's oldest ones; the new one's folder.

        When it returns the checkpoint survives a power cut. Raises `StorageFailure` (`storage_full`), and then the
        checkpoints before it are untouched.
        """
        path = self._write(unit, f"step-{step:012d}", step, tensors, state)
        steps = sorted(old for old in path.parent.iterdir() if _STEP.fullmatch(old.name))
        for old in steps[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def latest(self, unit: str) -> Checkpoint | None:
        """The checkpoint of the highest step that is whole, of this attempt or one before it."""
        found = [
            (int(match[1]), -age, path)
            for age, folder in enumerate(self._units(unit))
            for path in _children(folder)
            if (match := _STEP.fullmatch(path.name))
        ]
        return self._first_whole(unit, (path for _, _, path in sorted(found, reverse=True)))

    def finish(self, unit: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Records that the unit is done, with its result. Its step checkpoints have served and are removed."""
        path = self._write(unit, _FINISHED, 0, tensors, state)
        for old in _children(path.parent):
            if old.name != _FINISHED:
                shutil.rmtree(old, ignore_errors=True)
        return path

    def finished(self, unit: str) -> Checkpoint | None:
        """What `finish` recorded, in this attempt or one before it; None if the unit is not done."""
        return self._first_whole(unit, (path for folder in self._units(unit) if (path := folder / _FINISHED).is_dir()))

    def _units(self, unit: str) -> Iterator[Path]:
        if not _UNIT.fullmatch(unit):
            raise ValueError(f"{unit!r} is not a name for a folder")
        return (folder / unit for folder in (self.folder, *self.previous))

    def _first_whole(self, unit: str, paths: Iterator[Path]) -> Checkpoint | None:
        for path in paths:
            checkpoint = _read(unit, path)
            if checkpoint is not None:
                return checkpoint
            if self.on_damaged is not None:
                self.on_damaged(path)
        return None

    def _write(self, unit: str, name: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        parent = next(self._units(unit))
        path, partial = parent / name, parent / f".{name}.partial"
        try:
            # Of a run of the same attempt that died while it wrote.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(_apart(tensors), partial / _TENSORS)
            (partial / _STATE).write_text(json.dumps(state, sort_keys=True), encoding="utf-8")
            files = {file: _fingerprint(partial / file) for file in (_TENSORS, _STATE)}
            manifest = {"format": FORMAT, "unit": unit, "step": step, "files": files}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            for written in (*partial.iterdir(), partial):
                _fsync(written)
            # A folder can only be renamed over an empty one.
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
            for folder in (parent, self.folder):
                _fsync(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise _storage_failure(error) from error
        return path


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own: safetensors refuses tied weights and views."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        stored = tensor.detach().to("cpu").contiguous()
        storage = stored.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != stored.nbytes:
            stored = stored.clone()
        seen.add(storage.data_ptr())
        own[name] = stored
    return own


def _read(unit: str, path: Path) -> Checkpoint | None:
    """None if anything is missing, cut off or altered."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        whole = (
            manifest["format"] == FORMAT
            and manifest["unit"] == unit
            and all(_fingerprint(path / file) == manifest["files"][file] for file in (_TENSORS, _STATE))
        )
        if not whole:
            return None
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        # Copies, because the file that they are mapped from is removed by and by.
        tensors = {name: tensor.clone() for name, tensor in load_file(path / _TENSORS).items()}
        return Checkpoint(unit, int(manifest["step"]), tensors, state, path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _fingerprint(path: Path) -> dict[str, str | int]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": os.fstat(file.fileno()).st_size}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _storage_failure(error: OSError | SafetensorError) -> StorageFailure:
    number = f"os error {error.errno}" if isinstance(error, OSError) else str(error)
    if _FULL.search(number):
        return StorageFailure(
            "there is no space left for a checkpoint", code="storage_full", hint="free space in the data folder"
        )
    return StorageFailure("a checkpoint could not be written")
