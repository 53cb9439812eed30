"""From what a network gives for a batch to rows of logits that objectives compare, whatever the shape of the task.

B encodings of a batch, L tokens, P places of the longest, C numbers of a place, K teachers; M rows of logits:

    text    M = B, each over C labels
    words   M = B·P, each over C labels; places that are padding or were cut off are not valid
    span    M = 2·B, where the answer begins and where it ends, each over P places
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from worker.data import Answers, Encoded, Rows
from worker.objectives import NOWHERE, Heard, Nature

Shape = Literal["text", "words", "span"]
"""What a network's head answers for: the input as a whole, each of its words, or where a stretch begins and ends."""


@dataclass(frozen=True)
class TrainingSet:
    """E encodings, what is true of them and what teachers say of them."""

    encoded: Encoded
    targets: Tensor
    """As `TaskKind.targets` gives them."""
    teachers: tuple[Answers, ...] = ()
    weights: tuple[float, ...] = ()
    combine: Literal["probabilities", "logits"] = "probabilities"
    shape: Shape = "text"
    nature: Nature = "one_of"


@dataclass(frozen=True)
class Asked:
    """What is known of a batch's rows of logits before the network has answered."""

    targets: Tensor
    """(M,), or (M, C) where any of the labels may be true."""
    heard: Heard | None
    """(K, M, C)"""
    valid: Tensor | None
    """(M,) bool; None: all of them are."""
    places: Tensor | None
    """(B, P) int64, -1 for padding and for what was cut off."""

    def to(self, device: torch.device) -> "Asked":
        if device.type == "cpu":
            return self

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.pin_memory().to(device, non_blocking=True)

        heard = self.heard and Heard(self.heard.logits.to(device), self.heard.weights, self.heard.combine)
        targets = self.targets.pin_memory().to(device, non_blocking=True)
        return Asked(targets, heard, moved(self.valid), moved(self.places))


def asked(data: TrainingSet, rows: Rows) -> Asked:
    """What is known of the encodings `rows` of `data`, on the CPU."""
    places = _places(data.encoded, rows)
    targets = data.targets[torch.from_numpy(rows)]
    valid = None
    if data.shape == "words" and places is not None:
        width = places.shape[1]
        targets = targets[:, :width]
        if targets.shape[1] < width:
            targets = torch.nn.functional.pad(targets, (0, width - targets.shape[1]), value=-1)
        valid = (places >= 0).flatten()
        targets = targets.flatten()
    elif data.shape == "span":
        targets = targets.flatten()
    heard = None
    if data.teachers:
        logits = torch.stack([_heard(one, rows, data.shape, places) for one in data.teachers])
        heard = Heard(logits, data.weights, data.combine)
    return Asked(targets, heard, valid, places)


def logits_of(output: Any, shape: Shape, places: Tensor | None) -> Tensor:
    """(M, C) of a transformers output; `places` (B, P) on its device."""
    if shape == "text" or places is None:
        logits: Tensor = output.logits
        return logits
    at = places.clamp(min=0)
    if shape == "words":
        chosen = output.logits.gather(1, at[:, :, None].expand(-1, -1, output.logits.shape[-1]))
        words: Tensor = chosen.flatten(0, 1)
        return words
    both = torch.stack([output.start_logits, output.end_logits], dim=1).gather(2, at[:, None, :].expand(-1, 2, -1))
    found: Tensor = both.masked_fill((places < 0)[:, None, :], NOWHERE).flatten(0, 1)
    return found


def answers_of(output: Any, shape: Shape, encoded: Encoded, rows: Rows) -> list[Tensor]:
    """The raw logits at the places of each of `rows`, (P_i, C) each; NaN for a place that was cut off."""
    if shape == "text" or encoded.places is None:
        return list(output.logits.float().unsqueeze(1))
    if shape == "words":
        whole = output.logits.float()
    else:
        whole = torch.stack([output.start_logits, output.end_logits], dim=-1).float()
    found = []
    for place, row in enumerate(rows):
        at = torch.from_numpy(encoded.places[row].astype(np.int64)).to(whole.device)
        part = whole[place, at.clamp(min=0)]
        found.append(torch.where((at >= 0)[:, None], part, torch.nan))
    return found


def _places(encoded: Encoded, rows: Rows) -> Tensor | None:
    if encoded.places is None:
        return None
    chosen = [encoded.places[row] for row in rows]
    width = max(1, max((len(one) for one in chosen), default=1))
    found = np.full((len(rows), width), -1, np.int64)
    for place, one in enumerate(chosen):
        found[place, : len(one)] = one
    return torch.from_numpy(found)


def _heard(answers: Answers, rows: Sequence[int] | Rows, shape: Shape, places: Tensor | None) -> Tensor:
    """(M, C) of one teacher for the encodings `rows`."""
    if shape == "text" or places is None:
        return torch.from_numpy(answers.values[answers.starts[rows]])
    count, width = places.shape
    padding = np.nan if shape == "words" else NOWHERE
    found = np.full((count, width, answers.values.shape[1]), padding, np.float32)
    for place, row in enumerate(rows):
        one = answers[int(row)]
        found[place, : len(one)] = one
    if shape == "words":
        return torch.from_numpy(found).flatten(0, 1)
    return torch.from_numpy(found).transpose(1, 2).flatten(0, 1).contiguous()
