"""What a student is trained on: losses as pure functions of logits, in one convention.

The convention (`loss_convention: 1` of every manifest): an objective is a **sum over classes, averaged over valid
rows**, and soft targets carry τ². So that accumulation over micro-batches, and over processes, is exact, nothing is
averaged here: every function returns a sum over rows and the number of rows that it is a sum over, and the training
loop divides by the count of the whole batch, once. The total is `Σ weight · objective`.

Knows no network, optimizer or batch: where the teacher's logits come from is not its business.

Shapes: N rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from models.specs import HardLabels, Objective, Reserved, SoftTargets

NO_LABEL = -1
"""The target of a row that has no label."""


class Summed(NamedTuple):
    """A loss that is not divided yet: `sum / rows` is its mean over the valid rows."""

    sum: Tensor
    """Scalar: the sum over rows and classes, in float32 or wider."""
    rows: int | Tensor
    """Valid rows; a scalar tensor where counting them here would mean to wait for the device."""


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Summed:
    """`τ² · KL(softmax(teacher/τ) ‖ softmax(student/τ))`, forward KL (Hinton 2015, arXiv:1503.02531).

    Both are raw logits (N, C). τ² is always there, so that the gradient's size does not depend on τ. No gradient goes
    to the teacher.
    """
    # At a high temperature the divergence is the small difference of large numbers, which τ² then makes large: at
    # τ = 100 float32 is wrong in the third decimal place, and may say less than 0.
    log_student = log_softmax(student.double() / temperature, dim=-1)
    log_teacher = log_softmax(teacher.detach().double() / temperature, dim=-1)
    divergence = kl_div(log_student, log_teacher, reduction="sum", log_target=True) * temperature**2
    return Summed(divergence.to(_wide(student).dtype), len(student))


def hard_labels(student: Tensor, targets: Tensor) -> Summed:
    """Cross-entropy of raw logits (N, C) with class numbers (N,), int64; rows of -1 add nothing and are not counted."""
    loss = cross_entropy(_wide(student), targets, reduction="sum", ignore_index=NO_LABEL)
    return Summed(loss, (targets != NO_LABEL).sum())


def _wide(logits: Tensor) -> Tensor:
    """Under autocast logits come in bf16, in which a softmax loses three digits; float64 stays what it is."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# --- together ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """One entry for each objective, in the order of the spec."""

    objectives: tuple[Objective, ...]
    sums: tuple[Tensor, ...]
    counts: tuple[int | Tensor, ...]

    def means(self, counts: Sequence[int | Tensor] | None = None) -> tuple[Tensor, ...]:
        """Each sum over its count; 0 where nothing was valid.

        `counts`: those of the whole batch when these terms are of a micro-batch of it. The means of all micro-batches
        then add up to those of the batch.
        """
        chosen = self.counts if counts is None else counts
        return tuple(
            total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
            for total, count in zip(self.sums, chosen, strict=True)
        )

    def loss(self, counts: Sequence[int | Tensor] | None = None) -> Tensor:
        """Scalar `Σ weight · sum / count`: what is differentiated. `counts` as for `means`."""
        weighted = [weight(one) * mean for one, mean in zip(self.objectives, self.means(counts), strict=True)]
        return torch.stack(weighted).sum()


def total(
    objectives: Sequence[Objective], student_logits: Tensor, teacher_logits: Tensor | None, targets: Tensor
) -> Terms:
    """Every objective on the same rows.

    `teacher_logits` may be None when no objective asks for them (see `needs_teacher`); it is a `ValueError` otherwise.
    """
    summed = [_one(objective, student_logits, teacher_logits, targets) for objective in objectives]
    return Terms(tuple(objectives), tuple(one.sum for one in summed), tuple(one.rows for one in summed))


def _one(objective: Objective, student_logits: Tensor, teacher_logits: Tensor | None, targets: Tensor) -> Summed:
    match objective:
        case SoftTargets():
            if teacher_logits is None:
                raise ValueError("soft_targets without the teacher's logits")
            return soft_targets(student_logits, teacher_logits, objective.temperature)
        case HardLabels():
            return hard_labels(student_logits, targets)
        case Reserved():
            raise _reserved(objective)
        case _:
            assert_never(objective)


def valid_rows(objectives: Sequence[Objective], targets: Tensor) -> tuple[int, ...]:
    """The counts that `total` will give for these rows, known before any forward pass. `targets` lies on the CPU."""
    labelled = int((targets != NO_LABEL).sum())
    return tuple(_valid(objective, len(targets), labelled) for objective in objectives)


def _valid(objective: Objective, rows: int, labelled: int) -> int:
    match objective:
        case SoftTargets():
            return rows
        case HardLabels():
            return labelled
        case Reserved():
            raise _reserved(objective)
        case _:
            assert_never(objective)


def active(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """Those with a weight above 0: the others change nothing and cost a teacher."""
    return tuple(objective for objective in objectives if weight(objective))


def weight(objective: Objective) -> float:
    if isinstance(objective, Reserved):
        raise _reserved(objective)
    return objective.weight


def needs_teacher(objectives: Sequence[Objective]) -> bool:
    """Whether any objective of a weight above 0 looks at the teacher's logits."""
    return any(isinstance(objective, SoftTargets) for objective in active(objectives))


def _reserved(objective: Reserved) -> NotImplementedError:
    # `parse_job` refuses these with `not_available_yet`; to get here is a mistake of ours.
    return NotImplementedError(f"{type(objective).__name__} has no loss in this version")
