"""What a student's answers are trained on: losses as pure functions of logits, in one convention.

The convention (`loss_convention: 1` of every manifest): an objective is a **sum over classes, averaged over valid
rows**, and soft targets carry τ². So that accumulation over micro-batches, and over processes, is exact, nothing is
averaged here: every function returns a sum over rows and the number of rows that it is a sum over, and the training
loop divides by the count of the whole batch, once. The total is `Σ weight · objective`.

Knows no network, optimizer or batch: where the teachers' logits come from is not its business.

Shapes: M rows, C classes, K teachers. A row that is not valid, or of which nothing is known, adds exactly 0, has no
gradient and is not counted, whatever its logits are, NaN included: they are replaced before anything is computed, since
a mask on the result alone would let 0 · NaN through to the gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax, logsigmoid

from models.specs import (
    FEATURES,
    FeatureObjective,
    HardLabels,
    LogitDistance,
    Objective,
    OutputObjective,
    SoftTargets,
)

Nature = Literal["one_of", "any_of", "number"]
"""What the C numbers of a row mean: logits of which one is true, logits of which each may be, or the answer itself."""

NO_LABEL = -1
"""The target of a row of `one_of` that has no label."""

NOWHERE = -1e5
"""The logit of a class that a row does not have, such as a place beyond the end of a shorter text, in the student and
the teacher alike. Its probability underflows to 0, also at a high temperature."""


@dataclass(frozen=True)
class Heard:
    """What teachers say of M rows."""

    logits: Tensor
    """(K, M, C) raw logits, NaN where a teacher's answer is not known."""
    weights: tuple[float, ...]
    """(K,) of any positive scale. A teacher of weight 0 is not listened to."""
    combine: Literal["probabilities", "logits"]
    """What is averaged: the probabilities at the objective's own temperature, or the raw logits."""


class Summed(NamedTuple):
    """A loss that is not divided yet: `sum / rows` is its mean over the valid rows."""

    sum: Tensor
    """Scalar: the sum over rows and classes, in float32 or wider."""
    rows: int | Tensor
    """Valid rows; a scalar tensor where counting them here would mean to wait for the device."""


# --- one objective ----------------------------------------------------------------------------------------------------


def soft_targets(
    student: Tensor, teacher: Heard, objective: SoftTargets, *, nature: Nature, valid: Tensor | None = None
) -> Summed:
    """`τ² · D(teacher ‖ student)` of the probabilities at temperature τ (Hinton 2015, arXiv:1503.02531).

    `student`: raw logits (M, C); `valid`: (M,) bool. Of `one_of` the distribution is over the classes; of `any_of` each
    label has its own of yes and no, and their divergences are summed; a `number` has none (`ValueError`). τ² is always
    there, so that the gradient's size does not depend on τ. No gradient goes to the teacher.
    """
    if nature == "number":
        raise ValueError("a number has no probabilities: soft_targets do not apply")
    rows = _known(teacher, len(student), valid)
    # At a high temperature the divergence is the small difference of large numbers, which τ² then makes large: at
    # τ = 100 float32 is wrong in the third decimal place, and may say less than 0.
    log_student = _log_probabilities(_only(rows, student).double() / objective.temperature, nature)
    log_teacher = _log_mixture(teacher, rows, objective.temperature, nature)
    each = _divergence(log_teacher, log_student, objective).flatten(1).sum(1)
    return _summed(each * objective.temperature**2, rows, student)


def logit_distance(student: Tensor, teacher: Heard, *, nature: Nature, valid: Tensor | None = None) -> Summed:
    """`½ · ‖student − teacher‖²` of raw logits (M, C).

    Several teachers whose probabilities are combined have no logits of their own (`ValueError`). Classes that a row
    does not have (`NOWHERE` on both sides) add nothing.
    """
    if teacher.combine == "probabilities" and len(_with_weight(teacher)) > 1:
        raise ValueError("the mean of probabilities has no logits")
    rows = _known(teacher, len(student), valid)
    wanted = _mean_logits(teacher, rows)
    difference = _only(rows, student).double() - wanted
    if nature == "one_of":
        # Under autocast the student's is rounded to bf16, which has no -1e5.
        absent = (student < NOWHERE / 2) & (wanted < NOWHERE / 2)
        difference = torch.where(absent, 0.0, difference)
    return _summed(difference.square().sum(1) / 2, rows, student)


def hard_labels(student: Tensor, targets: Tensor, *, nature: Nature, valid: Tensor | None = None) -> Summed:
    """Cross-entropy of raw logits (M, C) with what is true, squared error for a number.

    `targets`: of `one_of` class numbers (M,), int64, -1 for none; of `any_of` 0 or 1 (M, C), a row of NaN for none; of
    a `number` (M,), NaN for none.
    """
    rows = _labelled(targets, nature, valid)
    logits = _only(rows, _wide(student))
    match nature:
        case "one_of":
            each = cross_entropy(logits, torch.where(rows, targets, 0), reduction="none")
        case "any_of":
            wanted = _only(rows, targets).to(logits.dtype)
            each = binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)
        case "number":
            each = (logits.squeeze(1) - torch.where(rows, targets, 0).to(logits.dtype)).square()
        case _:
            assert_never(nature)
    return _summed(each, rows, student)


def _divergence(log_teacher: Tensor, log_student: Tensor, objective: SoftTargets) -> Tensor:
    """The summands of the divergence of log-probabilities, of their shape."""
    forward = _kl(log_teacher, log_student)
    match objective.divergence:
        case "forward_kl":
            return forward
        case "reverse_kl":
            return _kl(log_student, log_teacher)
        case "jsd":
            beta = objective.beta
            # The ends are what the divergence tends to for β → 0 and 1 when it is divided by β and 1 - β; as it is
            # written it is 0 there (Agarwal et al. 2023, arXiv:2306.13649).
            if beta == 0:
                return forward
            if beta == 1:
                return _kl(log_student, log_teacher)
            log_middle = torch.logaddexp(log_teacher + log(beta), log_student + log(1 - beta))
            return beta * _kl(log_teacher, log_middle) + (1 - beta) * _kl(log_student, log_middle)
        case _:
            assert_never(objective.divergence)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The summands of KL(P ‖ Q)."""
    return log_p.exp() * (log_p - log_q)


# --- probabilities ----------------------------------------------------------------------------------------------------


def _log_probabilities(logits: Tensor, nature: Nature) -> Tensor:
    """(…, C) of one choice, (…, C, 2) of a yes and a no for each label."""
    if nature == "any_of":
        return torch.stack([logsigmoid(logits), logsigmoid(-logits)], dim=-1)
    return log_softmax(logits, dim=-1)


def _log_mixture(teacher: Heard, rows: Tensor, temperature: float, nature: Nature) -> Tensor:
    """The log-probabilities of all teachers together, in float64."""
    match teacher.combine:
        case "logits":
            return _log_probabilities(_mean_logits(teacher, rows) / temperature, nature)
        case "probabilities":
            logits, shares = _listened(teacher, rows)
            each = _log_probabilities(logits / temperature, nature)
            return torch.logsumexp(each + shares.log().view(-1, *[1] * (each.ndim - 1)), dim=0)
        case _:
            assert_never(teacher.combine)


def _mean_logits(teacher: Heard, rows: Tensor) -> Tensor:
    """(M, C) in float64."""
    logits, shares = _listened(teacher, rows)
    return (logits * shares[:, None, None]).sum(0)


def _listened(teacher: Heard, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of teachers with a weight, 0 in rows that do not count, and their shares of 1; both in float64."""
    weights = torch.tensor([one for one in teacher.weights if one], dtype=torch.float64)
    logits = _only(rows, _with_weight(teacher).detach()).double()
    return logits, (weights / weights.sum()).to(logits.device)


def _with_weight(teacher: Heard) -> Tensor:
    if len(teacher.weights) != len(teacher.logits) or min(teacher.weights) < 0 or not any(teacher.weights):
        raise ValueError("each teacher needs a weight of 0 or more, and one of them more than 0")
    if all(teacher.weights):
        return teacher.logits
    return teacher.logits[[place for place, one in enumerate(teacher.weights) if one]]


# --- rows -------------------------------------------------------------------------------------------------------------


def _known(teacher: Heard, count: int, valid: Tensor | None) -> Tensor:
    """(M,) bool: the rows of which every teacher with a weight says something."""
    if teacher.logits.shape[1] != count:
        raise ValueError(f"{count} rows of the student and {teacher.logits.shape[1]} of the teachers")
    known = ~_with_weight(teacher).isnan().any(dim=-1).any(dim=0)
    return known if valid is None else known & valid


def _labelled(targets: Tensor, nature: Nature, valid: Tensor | None) -> Tensor:
    """(M,) bool: the rows of which the truth is known."""
    match nature:
        case "one_of":
            known = targets != NO_LABEL
        case "any_of":
            known = ~targets.isnan().any(dim=-1)
        case "number":
            known = ~targets.isnan()
        case _:
            assert_never(nature)
    return known if valid is None else known & valid


def _only(rows: Tensor, values: Tensor) -> Tensor:
    """`values` (…, M, C) with 0 in the rows that do not count."""
    return torch.where(rows[:, None], values, 0.0)


def _summed(each: Tensor, rows: Tensor, student: Tensor) -> Summed:
    """The sum of `each` (M,) over the rows that count."""
    return Summed(torch.where(rows, each, 0.0).sum().to(_wide_type(student)), rows.sum())


def _wide(logits: Tensor) -> Tensor:
    """Under autocast logits come in bf16, in which a softmax loses three digits; float64 stays what it is."""
    return logits.to(_wide_type(logits))


def _wide_type(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


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
    objectives: Sequence[OutputObjective],
    student: Tensor,
    teacher: Heard | None,
    targets: Tensor,
    *,
    nature: Nature,
    valid: Tensor | None = None,
) -> Terms:
    """Every objective on the same rows.

    `student`: raw logits (M, C); `targets` as for `hard_labels`; `valid`: (M,) bool, None for all rows. `teacher` may
    be None when no objective asks for it (see `needs_teacher`); it is a `ValueError` otherwise.
    """
    summed = [_one(objective, student, teacher, targets, nature, valid) for objective in objectives]
    return Terms(tuple(objectives), tuple(one.sum for one in summed), tuple(one.rows for one in summed))


def _one(
    objective: OutputObjective,
    student: Tensor,
    teacher: Heard | None,
    targets: Tensor,
    nature: Nature,
    valid: Tensor | None,
) -> Summed:
    if isinstance(objective, HardLabels):
        return hard_labels(student, targets, nature=nature, valid=valid)
    if teacher is None:
        raise ValueError(f"{objective.kind} without the teacher's logits")
    match objective:
        case SoftTargets():
            return soft_targets(student, teacher, objective, nature=nature, valid=valid)
        case LogitDistance():
            return logit_distance(student, teacher, nature=nature, valid=valid)
        case _:
            assert_never(objective)


def valid_rows(
    objectives: Sequence[OutputObjective],
    targets: Tensor,
    teacher: Heard | None,
    *,
    nature: Nature,
    valid: Tensor | None = None,
) -> tuple[int, ...]:
    """The counts that `total` will give for these rows, known before any forward pass. All tensors lie on the CPU.

    `teacher` None: one that is asked later, and then answers every row that is valid.
    """
    if teacher is not None:
        known = int(_known(teacher, len(targets), valid).sum())
    else:
        known = len(targets) if valid is None else int(valid.sum())
    labelled = int(_labelled(targets, nature, valid).sum())
    return tuple(labelled if isinstance(objective, HardLabels) else known for objective in objectives)


def weight(objective: Objective) -> float:
    return objective.weight


def active(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """Those with a weight above 0: the others change nothing and cost a teacher."""
    return tuple(objective for objective in objectives if weight(objective))


def outputs(objectives: Sequence[Objective]) -> tuple[OutputObjective, ...]:
    """Those of the answers: what this module computes."""
    return tuple(objective for objective in objectives if not isinstance(objective, FEATURES))


def features(objectives: Sequence[Objective]) -> tuple[FeatureObjective, ...]:
    """Those that look inside the networks."""
    return tuple(objective for objective in objectives if isinstance(objective, FEATURES))


def needs_teacher(objectives: Sequence[Objective]) -> bool:
    """Whether any objective of a weight above 0 looks at the teacher's logits."""
    return any(not isinstance(objective, HardLabels) for objective in outputs(active(objectives)))
