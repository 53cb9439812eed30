"""Objectives that look inside both networks: hidden states, attention, and the relations of queries, keys and values.

The convention is that of `worker.objectives`, with means over features in place of sums over classes: each objective is
a mean over features and heads, over mapped layers and over Q, K, V, and is summed over valid positions, pairs of
positions or rows, to be divided by their true count once. Everything is computed in float32 or wider, whatever the
networks run in.

Hidden states come from hooks on the embeddings and the layers, attention from hooks on the projections of queries and
keys, so that any attention kernel will do. Does not know answers, labels or the training loop.

Shapes: B rows, L tokens, D width, A width of the concatenated heads, H heads, M and N layers of student and teacher.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import starmap
from math import gcd
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, linear, log_softmax, normalize
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from models.errors import JobFailure
from models.specs import AttentionScores, AttentionTransfer, Embeddings, FeatureObjective, HiddenStates, Relations
from worker.data import Rows
from worker.encoders import Encoder, encoder_of, split_heads, split_qkv
from worker.objectives import Summed
from worker.students import uniform_layers

Pairs = list[tuple[int, int]]
"""(student's, teacher's), 0-based."""


# --- which layers, and which heads ------------------------------------------------------------------------------------


def layer_pairs(student_layers: int, teacher_layers: int) -> Pairs:
    """TinyBERT's uniform map of layers: 12 → 4 gives (0, 2), (1, 5), (2, 8), (3, 11).

    Raises `ValueError` if the student is the deeper one.
    """
    return list(enumerate(uniform_layers(teacher_layers, student_layers)))


def state_pairs(student_layers: int, teacher_layers: int) -> Pairs:
    """TinyBERT's uniform map of hidden states, the embedding's output first: 12 → 4 gives (0, 0), (1, 3) … (4, 12).

    `(j, ⌊j·N/M + ½⌋)`. Raises `ValueError` if the student is the deeper one.
    """
    return [(0, 0), *((layer + 1, other + 1) for layer, other in layer_pairs(student_layers, teacher_layers))]


def _pairs(objective: FeatureObjective, student: Encoder, teacher: Encoder) -> Pairs:
    """The pairs of states (hidden states, embeddings) or of layers (the others)."""
    depths = len(student.layers), len(teacher.layers)
    match objective:
        case Embeddings():
            return [(0, 0)]
        case HiddenStates(layers="middle"):
            return [state_pairs(*depths)[depths[0] // 2]]
        case HiddenStates():
            return [*objective.layers] if isinstance(objective.layers, list) else state_pairs(*depths)
        case AttentionTransfer() | AttentionScores():
            return objective.layers or layer_pairs(*depths)
        case Relations():
            last = depths[0] - 1, depths[1] - 1
            own, other = objective.student_layer, objective.teacher_layer
            return [(last[0] if own is None else own, last[1] if other is None else other)]
        case _:
            assert_never(objective)


def _relation_heads(objective: Relations, student: Encoder, teacher: Encoder) -> int:
    """A_r. The gcd with the teacher's heads is these heads themselves where they divide both widths."""
    return objective.heads or gcd(teacher.heads, teacher.attention_size, student.attention_size)


def check(
    objectives: Sequence[FeatureObjective],
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    pointer: Callable[[int], str],
) -> None:
    """Whether every objective can look into both networks; `pointer` says where objective i stands in the spec.

    Raises `JobFailure` with the code architecture_unsupported, impossible_layers, heads_differ or impossible_heads.
    """
    for place, objective in enumerate(objectives):
        at = pointer(place)
        own, other = encoder_of(student, at), encoder_of(teacher, at)
        _check_layers(objective, own, other, at)
        if isinstance(objective, AttentionScores) and objective.heads == "same" and own.heads != other.heads:
            raise JobFailure(
                f"the student has {own.heads} attention heads and the teacher {other.heads}",
                code="heads_differ",
                hint='say "heads": "averaged" to compare the means over the heads, or use relations',
                pointer=at,
            )
        if isinstance(objective, Relations):
            heads = _relation_heads(objective, own, other)
            if own.attention_size % heads or other.attention_size % heads:
                raise JobFailure(
                    f"{heads} relation heads do not divide both {own.attention_size} (the student's width) and "
                    f"{other.attention_size} (the teacher's)",
                    code="impossible_heads",
                    hint=f"use a divisor of {gcd(own.attention_size, other.attention_size)}, or leave heads out",
                    pointer=at,
                )


def _check_layers(objective: FeatureObjective, student: Encoder, teacher: Encoder, at: str) -> None:
    kind, extra = ("states", 1) if isinstance(objective, HiddenStates | Embeddings) else ("layers", 0)
    depths = len(student.layers) + extra, len(teacher.layers) + extra
    try:
        pairs = _pairs(objective, student, teacher)
    except ValueError as error:
        raise JobFailure(
            f"the student has {len(student.layers)} layers, more than the {len(teacher.layers)} of the teacher, and "
            "the uniform map is for fewer",
            code="impossible_layers",
            hint='name the pairs (student, teacher) in "layers"',
            pointer=at,
        ) from error
    for pair in pairs:
        for whose, asked, there in zip(("student", "teacher"), pair, depths, strict=True):
            if asked >= there:
                raise JobFailure(
                    f"the {whose} has the {kind} 0 to {there - 1}, and {asked} is asked for",
                    code="impossible_layers",
                    hint="each pair is (student, teacher), counted from 0",
                    pointer=at,
                )


# --- how many ---------------------------------------------------------------------------------------------------------


def counts(objectives: Sequence[FeatureObjective], lengths: Rows) -> tuple[int, ...]:
    """What each sum of `Features.terms` is divided by, from the rows' numbers of tokens (B,)."""
    return tuple(_count(objective, lengths) for objective in objectives)


def _count(objective: FeatureObjective, lengths: Rows) -> int:
    match objective:
        case AttentionTransfer():
            return len(lengths)
        case AttentionScores():
            return int((lengths**2).sum())
        case HiddenStates() | Embeddings() | Relations():
            return int(lengths.sum())
        case _:
            assert_never(objective)


# --- losses -----------------------------------------------------------------------------------------------------------


def hidden_distance(student: Tensor, teacher: Tensor, metric: str) -> Tensor:
    """(B, L): `‖h_S − h_T‖² / D`, or `1 − cos`, of states (B, L, D) of one width."""
    if metric == "cosine":
        # ½‖a − b‖² of unit vectors is 1 − cos, and rounding never takes it below 0.
        return (normalize(student, dim=-1) - normalize(teacher, dim=-1)).square().sum(-1) / 2
    return (student - teacher).square().mean(-1)


def attention_transfer(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """(B,): `‖Q_S/‖Q_S‖₂ − Q_T/‖Q_T‖₂‖²`, `Q = Σ_c h_c²` over the valid positions (B, L); widths may differ.

    Zagoruyko 2017, arXiv:1612.03928.
    """
    maps = [normalize(states.square().sum(-1).masked_fill(~valid, 0), dim=-1) for states in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(-1)


def relations(student: Tensor, teacher: Tensor, heads: int, valid: Tensor) -> Tensor:
    """(B, L): `KL(R_T ‖ R_S)`, the mean over relation heads, with `R = softmax(A·Aᵀ/√d)` over the valid positions.

    `student` and `teacher` are queries, keys or values (B, L, A) of any two widths. MiniLMv2, arXiv:2012.15828.
    """
    log_student, log_teacher = _log_relations(student, heads, valid), _log_relations(teacher, heads, valid)
    divergence = kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    # Of two relations that are nearly equal rounding may say less than 0.
    return divergence.clamp(min=0).mean(1)


def _log_relations(joined: Tensor, heads: int, valid: Tensor) -> Tensor:
    """(B, heads, L, L)."""
    split = split_heads(joined, heads)
    products = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    # Not -inf: the difference of two of these would be NaN.
    return log_softmax(products.masked_fill(~valid[:, None, None, :], torch.finfo(products.dtype).min), dim=-1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# --- the two networks -------------------------------------------------------------------------------------------------


class _Captured:
    """What the last forward pass of one encoder left at the places that are looked at, with its gradient."""

    def __init__(self, encoder: Encoder, states: Iterable[int], layers: Iterable[int]) -> None:
        """`states`: hidden states 0…M; `layers`: those whose queries, keys and values are wanted."""
        self.encoder = encoder
        self._found: dict[nn.Module, Tensor] = {}
        self._states = encoder.states()
        self._projections = {layer: encoder.projections(layer).qkv for layer in layers}
        watched = {self._states[state] for state in states}
        watched.update(module for modules in self._projections.values() for module in modules)
        self._hooks: list[RemovableHandle] = [encoder.body.register_forward_pre_hook(self._begin)]
        self._hooks += [module.register_forward_hook(self._keep) for module in watched]

    def _begin(self, _module: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
        self.clear()

    def _keep(self, module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        # The first call of a pass is the one on the tokens: DeBERTa projects its relative positions by the same matrix.
        self._found.setdefault(module, output[0] if isinstance(output, tuple) else output)

    def state(self, number: int) -> Tensor:
        """(B, L, D)."""
        return _wide(self._found[self._states[number]])

    def qkv(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, A) each."""
        return split_qkv([_wide(self._found[module]) for module in self._projections[layer]])

    def scores(self, layer: int) -> Tensor:
        """(B, H, L, L), before mask and softmax."""
        query, key, _ = self.qkv(layer)
        return _wide(self.encoder.scores(layer, query, key))

    def clear(self) -> None:
        self._found.clear()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.clear()


class Features(nn.Module):
    """The feature objectives of one phase, for one student and one teacher.

    The order of a step is `ask_teacher`, the student's own forward pass on the same rows, `terms`. What is trained here
    is the projection from the student's width to the teacher's, which hidden states and embeddings share; the networks
    are not part of `parameters()` and `state_dict()`. They are watched until `close`.
    """

    projection: nn.Parameter | None
    kept: Tensor | None

    def __init__(
        self,
        objectives: Sequence[FeatureObjective],
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        seed: int,
        kept: Tensor | None = None,
    ) -> None:
        """`kept` (V,): the teacher's id of each of the student's ids; None: they are the same.

        What `check` refuses is a mistake of the caller here. The projection is drawn from `seed`, and is the identity
        between equal widths.
        """
        super().__init__()
        self.objectives = tuple(objectives)
        own, other = encoder_of(student), encoder_of(teacher)
        self._pairs = [_pairs(objective, own, other) for objective in self.objectives]
        of_student, of_teacher = (self._places(side) for side in (0, 1))
        self._student, self._teacher = _Captured(own, *of_student), _Captured(other, *of_teacher)
        needed = any(isinstance(objective, HiddenStates | Embeddings) for objective in self.objectives)
        first = _projection(own.hidden_size, other.hidden_size, seed) if needed else None
        self.register_parameter("projection", first)
        self.register_buffer("kept", kept, persistent=False)

    def _places(self, side: int) -> tuple[set[int], set[int]]:
        """The states, and the layers with their queries, keys and values, that one side needs."""
        states: set[int] = set()
        layers: set[int] = set()
        for objective, pairs in zip(self.objectives, self._pairs, strict=True):
            places = {pair[side] for pair in pairs}
            if isinstance(objective, AttentionScores | Relations):
                layers |= places
            else:
                # The output of layer j is state j + 1.
                states |= {place + 1 for place in places} if isinstance(objective, AttentionTransfer) else places
        return states, layers

    @torch.no_grad()
    def ask_teacher(self, inputs: dict[str, Tensor]) -> None:
        """The teacher's forward pass on the student's `input_ids` (B, L), `attention_mask` and `token_type_ids`."""
        body = self._teacher.encoder.body
        body.eval()
        ids = inputs["input_ids"]
        known = {"input_ids": ids if self.kept is None else self.kept[ids], "attention_mask": inputs["attention_mask"]}
        # A family without segments does not take them, and one with a single segment has no row for the second.
        if "token_type_ids" in inputs and getattr(body.config, "type_vocab_size", 0) > 1:
            known["token_type_ids"] = inputs["token_type_ids"]
        body(**known)

    def terms(self, attention_mask: Tensor) -> list[Summed]:
        """One for each objective, of the rows that both networks have just read; `attention_mask` (B, L).

        What was captured is let go of.
        """
        valid = attention_mask.bool()
        with torch.autocast(valid.device.type, enabled=False):
            found = [self._term(*each, valid) for each in zip(self.objectives, self._pairs, strict=True)]
        self._student.clear()
        self._teacher.clear()
        return found

    def close(self) -> None:
        """Takes every hook away from both networks."""
        self._student.close()
        self._teacher.close()

    def _term(self, objective: FeatureObjective, pairs: Pairs, valid: Tensor) -> Summed:
        match objective:
            case HiddenStates():
                found = self._mean(lambda own, other: self._hidden(own, other, objective.metric), pairs)
                return Summed(found.masked_fill(~valid, 0).sum(), valid.sum())
            case Embeddings():
                return Summed(self._hidden(0, 0, "mse").masked_fill(~valid, 0).sum(), valid.sum())
            case AttentionTransfer():
                found = self._mean(
                    lambda own, other: attention_transfer(
                        self._student.state(own + 1), self._teacher.state(other + 1), valid
                    ),
                    pairs,
                )
                return Summed(found.sum(), len(valid))
            case AttentionScores():
                averaged = objective.heads == "averaged"
                found = self._mean(lambda own, other: self._scores(own, other, valid, averaged=averaged), pairs)
                return Summed(found.sum(), valid.sum(-1).square().sum())
            case Relations():
                found = self._mean(lambda own, other: self._relations(objective, own, other, valid), pairs)
                return Summed(found.masked_fill(~valid, 0).sum(), valid.sum())
            case _:
                assert_never(objective)

    @staticmethod
    def _mean(one: Callable[[int, int], Tensor], pairs: Pairs) -> Tensor:
        """The mean over the mapped layers."""
        return torch.stack(list(starmap(one, pairs))).mean(0)

    def _hidden(self, own: int, other: int, metric: str) -> Tensor:
        if self.projection is None:
            raise RuntimeError("there is no projection")
        student, teacher = self._student.state(own), self._teacher.state(other)
        return hidden_distance(linear(student, self.projection.to(student.dtype)), teacher, metric)

    def _scores(self, own: int, other: int, valid: Tensor, *, averaged: bool) -> Tensor:
        """(B, L, L): the mean over heads of the squared difference; 0 where either network sees nothing."""
        student, teacher = self._student.scores(own), self._teacher.scores(other)
        if averaged:
            student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
        seen = valid[:, :, None] & valid[:, None, :]
        place = torch.arange(valid.shape[1], device=valid.device)
        for window in (self._student.encoder.window(own), self._teacher.encoder.window(other)):
            if window is not None:
                seen = seen & ((place[:, None] - place[None, :]).abs() <= window)
        return (student - teacher).square().mean(1).masked_fill(~seen, 0)

    def _relations(self, objective: Relations, own: int, other: int, valid: Tensor) -> Tensor:
        """(B, L): the mean over queries, keys and values."""
        heads = _relation_heads(objective, self._student.encoder, self._teacher.encoder)
        both = zip(self._student.qkv(own), self._teacher.qkv(other), strict=True)
        return torch.stack([relations(student, teacher, heads, valid) for student, teacher in both]).mean(0)


def _projection(student: int, teacher: int, seed: int) -> nn.Parameter:
    """(D_T, D_S): the identity between equal widths, else drawn so that a state keeps its mean square."""
    if student == teacher:
        return nn.Parameter(torch.eye(student))
    drawn = torch.randn(teacher, student, generator=torch.Generator().manual_seed(seed))
    return nn.Parameter(drawn * student**-0.5)
