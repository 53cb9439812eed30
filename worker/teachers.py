"""Finds and opens a teacher. Training one is the recipe's; its answers are kept by `worker.signals`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from transformers import PreTrainedModel

from models import references
from models.errors import JobFailure, Missing
from models.references import Reference
from worker.folders import Head, check_folder, check_positions, fingerprint, open_folder
from worker.protocol import Assignment

# All that a checkpoint needs, and what says its licence. Anything else in a repository is neither fetched nor opened.
_FILES = ["*.safetensors", "*.json", "*.txt", "README.md", "LICENSE*", "LICENCE*", "COPYING*"]
_TRAINED_FOR: Mapping[Head, str] = {
    "one_label": "classification",
    "labels": "classification",
    "number": "regression (one output)",
    "tags": "token classification",
    "span": "question answering",
}


@dataclass(frozen=True)
class OpenTeacher:
    """A teacher ready to answer, or to be trained: its outputs stand in the order of `label_names`."""

    network: PreTrainedModel
    tokenizer: Any
    folder: Path
    label_names: tuple[str, ...]
    identity: str
    """SHA-256 over weights, config, tokenizer, head and the order of the labels: the teacher's part of a signal's key.

    Holds for the network as it was opened; after fine-tuning take `folders.fingerprint_of`.
    """


def find_folder(reference: str, assignment: Assignment, *, pointer: str = "/teachers/0/model") -> Path:
    """The local folder of a reference, fetched from the hub where needed, and checked to hold only what may be opened.

    Raises `JobFailure` with the code teacher_not_found, hub_unreachable, teacher_unreadable or unsafe_weights.
    """
    parsed = references.parse(reference)
    match parsed.scheme:
        case "hub":
            folder = _fetch(parsed, pointer)
        case "package" | "file":
            try:
                folder = references.locate(parsed, assignment.models_folder)
            except Missing as error:
                raise JobFailure(error.message, code="teacher_not_found", hint=error.hint, pointer=pointer) from error
        case "student" | "teacher":
            found = assignment.checkpoints_of_models.get(str(parsed))
            if found is None or not found.is_dir():
                raise JobFailure(f"{parsed} was not found", code="teacher_not_found", pointer=pointer)
            folder = found
        case _:
            assert_never(parsed.scheme)
    check_folder(folder, pointer)
    return folder


def open_teacher(
    folder: Path,
    labels: Sequence[str],
    *,
    head: Head,
    fine_tune: bool,
    seed: int = 0,
    renamed: Mapping[str, str] | None = None,
    max_length: int | None = None,
    pointer: str = "/teachers/0",
) -> OpenTeacher:
    """The teacher in `folder` with its outputs in the order of `labels`, in evaluation mode, float32, on the CPU.

    With `fine_tune` a `head` is drawn from `seed` where the checkpoint has none for these labels. Without it the
    checkpoint must have one, and the names of its labels (after `renamed`, the spec's `labels`) must be these. The
    codes of the `JobFailure` are no_head, labels_disagree, max_length_too_long and those of `folders.open_folder`.
    """
    opened = open_folder(folder, labels, head=head, seed=seed, pointer=f"{pointer}/model", renamed=renamed)
    if not fine_tune and not opened.has_head:
        raise JobFailure(
            f"the checkpoint has no head that was trained for {_TRAINED_FOR[head]}",
            code="no_head",
            hint='add "fine_tune": {} to the teacher, which trains it on the labelled rows first',
            pointer=f"{pointer}/fine_tune",
        )
    if not fine_tune and not opened.answers:
        raise _disagreement(opened.own_labels, labels, renamed, pointer)
    if max_length is not None:
        check_positions(opened.network, max_length, "teacher")
    parts = [fingerprint(folder), head, list(labels), list(opened.own_labels)]
    identity = hashlib.sha256(json.dumps(parts).encode())
    return OpenTeacher(opened.network, opened.tokenizer, folder, tuple(labels), identity.hexdigest())


def _disagreement(
    own: Sequence[str], labels: Sequence[str], renamed: Mapping[str, str] | None, pointer: str
) -> JobFailure:
    unnamed = any(name.startswith("LABEL_") for name in own)
    example = json.dumps({own[0]: labels[0]}) if own and labels else "{}"
    return JobFailure(
        f"the teacher's labels ({_list(own)}) are not the data's ({_list(labels)})",
        code="labels_disagree",
        hint=f'name them: "labels": {example}, and so on'
        if unnamed or not renamed
        else 'check the names in "labels", or add "fine_tune": {} to train the teacher on these labels',
        pointer=f"{pointer}/labels",
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", … {len(names)} in all" if len(names) > 8 else "")


def _fetch(reference: Reference, pointer: str) -> Path:
    """The repository's files in the hub's cache. Folders inside it are left out: they are copies in other formats."""
    try:
        return Path(
            snapshot_download(
                reference.name, revision=reference.revision, allow_patterns=_FILES, ignore_patterns=["*/*"]
            )
        )
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise JobFailure(
            f"{reference} does not exist on the hub, or is not open to this machine",
            code="teacher_not_found",
            hint="check the name and the revision; a private or gated repository needs a token on the worker",
            pointer=pointer,
        ) from error
    except (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        HfHubHTTPError,
        HTTPError,
        RevisionResolutionError,
        OSError,
    ) as error:
        raise JobFailure(
            f"{reference} could not be fetched: the hub does not answer this machine",
            code="hub_unreachable",
            hint="check the network, or put the files into LIMBECK_MODELS_DIR and name them file:…",
            pointer=pointer,
        ) from error
