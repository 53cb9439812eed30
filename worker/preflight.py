"""What can be said before the long work: rows that will teach badly, memory and time that will not do.

Pure functions of numbers and rows, in seconds. What is doubtful is a warning, a pair of a stable code and a sentence;
what cannot work is a `JobFailure`. Whether the rows themselves can be read is the readers' business, and rows that leak
from training into the test are dropped by them.

Knows no network, teacher or optimizer.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models.decoding import OUTSIDE
from models.errors import JobFailure
from models.inputs import canonical
from worker.data import Encoded, groups_of
from worker.tasks.base import Data, TaskKind

Warnings = list[tuple[str, str]]

_CUT_SHARE = 0.01
_DUPLICATE_SHARE = 0.05
_IMBALANCE = 50
_FEW_ROWS = 10
_TIGHT = 0.9
_NAMED = 10


# --- rows -------------------------------------------------------------------------------------------------------------


def row_warnings(kind: TaskKind, data: Data, encoded: Encoded) -> Warnings:
    """What is doubtful about the training rows; `encoded` is `data.train` as the student's tokenizer cuts it.

    Codes: texts_truncated, duplicate_rows, training_rows_unlabelled, labels_unbalanced, few_rows_of_label.
    """
    return [
        *_truncation(kind, encoded),
        *_duplicates(data),
        *_unlabelled(data),
        *_labels(label_counts(kind, data, encoded)),
    ]


def label_counts(kind: TaskKind, data: Data, encoded: Encoded) -> dict[str, int]:
    """How often each label occurs among the training rows, or their words; empty where an answer is no label.

    Words outside of every entity are always the most, and say nothing: they are left out.
    """
    if kind.nature == "number" or kind.shape == "span":
        return {}
    targets = kind.targets(data.train, encoded)
    if kind.nature == "any_of":
        counts = torch.nan_to_num(targets).sum(0).round().long()
    else:
        counts = torch.bincount(targets[targets >= 0].flatten(), minlength=len(data.labels))
    found = zip(data.labels, counts.tolist(), strict=True)
    return {label: count for label, count in found if kind.shape != "words" or label != OUTSIDE}


def _truncation(kind: TaskKind, encoded: Encoded) -> Warnings:
    """A context is read in windows and loses nothing. Words that were cut off are known; of a whole text it is only
    known that it fills all its tokens."""
    if kind.shape == "span" or not len(encoded):
        return []
    most = int(kind.task.max_length)
    if kind.shape == "words" and encoded.places is not None:
        cut = sum(bool((places < 0).any()) for places in encoded.places)
    else:
        cut = int((encoded.lengths >= most).sum())
    share = cut / len(encoded)
    if share <= _CUT_SHARE:
        return []
    message = f"{share:.1%} of the training rows reach {most} tokens, and nothing beyond them is read"
    return [("texts_truncated", f"{message}; a greater task.max_length would show more of them")]


def _duplicates(data: Data) -> Warnings:
    groups = groups_of(canonical(item) for item in data.train.inputs)
    if not len(groups):
        return []
    share = (len(groups) - len(np.unique(groups))) / len(groups)
    if share <= _DUPLICATE_SHARE:
        return []
    return [("duplicate_rows", f"{share:.1%} of the training rows repeat another one, and weigh more for it")]


def _unlabelled(data: Data) -> Warnings:
    missing = int((~data.train.labelled).sum())
    if not missing:
        return []
    message = f"{missing} of {len(data.train)} training rows have no label and are learned from the teacher alone"
    return [("training_rows_unlabelled", message)]


def _labels(counts: dict[str, int]) -> Warnings:
    """Labels that no row has are the readers' warning; here they are left out."""
    by_count = sorted((count, label) for label, count in counts.items() if count)
    if not by_count:
        return []
    found: Warnings = []
    (fewest, rarest), (most, commonest) = by_count[0], by_count[-1]
    if most > _IMBALANCE * fewest:
        message = f"{commonest!r} occurs {most} times for {fewest} times of {rarest!r} among the training rows"
        found.append(("labels_unbalanced", f"{message}: look at the scores of each label, not at accuracy"))
    few = [f"{label!r} ({count})" for count, label in by_count if count < _FEW_ROWS]
    if few:
        more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
        message = f"fewer than {_FEW_ROWS} training examples of {', '.join(few[:_NAMED])}{more}"
        found.append(("few_rows_of_label", message))
    return found


# --- memory -----------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes of a training step in float32."""

    networks: int
    """Weights, gradients and the optimizer's moments; known exactly."""
    activations: int
    """What is kept for the backward pass; about right, and what `micro_batch_tokens` makes smaller."""


def memory_estimate(
    *, student: int, teachers: int, tokens: int, longest: int, hidden: int, layers: int, heads: int
) -> Memory:
    """What training takes: `student` parameters with gradients and two moments of Adam, 16 bytes each; those of
    `teachers` that answer online, 4 bytes each; and activations of `tokens` at once in rows of at most `longest`.

    Activations of a layer are `34·h + 5·a·s` bytes a token in 16 bits (Korthikanti 2022, arXiv:2205.05198), here twice
    that; the second part is what an attention kernel without the matrix of scores saves.
    """
    # A row that is longer than the micro-batch goes through the network all the same.
    at_once = max(tokens, longest)
    return Memory(16 * student + 4 * teachers, at_once * layers * (68 * hidden + 10 * heads * longest))


def check_memory(needed: Memory, available: int | None) -> Warnings:
    """Refuses what cannot fit, and warns (`memory_is_tight`) of what may not; `available` None: not known.

    Raises `JobFailure` (`too_little_memory`) where the networks alone are more than `available` bytes: activations are
    an estimate, and an estimate stops no job.
    """
    if available is None:
        return []
    whole = sum(needed)
    if needed.networks > available:
        raise JobFailure(
            f"the networks and the optimizer take {_gib(needed.networks)}, and {_gib(available)} are available",
            code="too_little_memory",
            hint="take a smaller student, teach from recorded answers, or give the worker more memory",
            pointer="/resources",
        )
    if whole <= _TIGHT * available:
        return []
    message = f"training takes about {_gib(whole)}, and {_gib(available)} are available"
    return [("memory_is_tight", f"{message}; a smaller schedule.micro_batch_tokens takes less")]


def available_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that this process may take in all on `device`, what it has taken already included; None: not known.

    On a CPU it is the host's, or the container's if that is less. `root`: where `proc` and `sys` are found.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    free_on_host = _fields(root / "proc/meminfo").get("MemAvailable")
    if free_on_host is None:
        return None
    free = free_on_host * 1024
    limit = _text(root / "sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal():
        # Not memory.current, which counts files that the kernel forgets as soon as memory is short.
        free = min(free, int(limit) - _fields(root / "sys/fs/cgroup/memory.stat").get("anon", 0))
    return max(0, free) + _fields(root / "proc/self/status").get("VmRSS", 0) * 1024


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


# --- time -------------------------------------------------------------------------------------------------------------


def time_warnings(expected: float, max_seconds: int | None) -> Warnings:
    """`time_limit_likely` where training alone takes about `expected` seconds, more than the limit."""
    if max_seconds is None or expected <= max_seconds:
        return []
    message = f"training the student takes about {expected:.0f} s on this worker, and max_seconds is {max_seconds}"
    return [("time_limit_likely", message)]


# --- the first step ---------------------------------------------------------------------------------------------------


def step_zero(distillation: float, total: float) -> float:
    """The share, 0 to 1, that distillation has in the first step's gradient; both are norms, before any clipping.

    Called where an objective with a weight asks a teacher. Raises `JobFailure` (`no_gradient`) where nothing comes
    from it: the loss would fall all the same, and the student would learn from the labels alone.
    """
    if not (math.isfinite(distillation) and math.isfinite(total)) or distillation <= 0 or total <= 0:
        raise JobFailure(
            f"the teacher moves nothing at the first step: the gradient of distillation has the norm {distillation:g}",
            code="no_gradient",
            hint="check that the student is not the teacher itself, that the teacher answers the training rows, and "
            "that the weight and the temperature are not extreme",
            pointer="/method",
        )
    return min(1.0, distillation / total)
