"""A narrower network out of a wider one: fewer dimensions, attention heads and feed-forward units, the important ones.

    width    every layer writes into one stream of D numbers per token and reads from it. P (D, h) has the h principal
             directions of that stream; what reads it is multiplied by P, what writes it by Pᵀ, so that x·P stands in
             the narrow network where x stood in the wide one. A LayerNorm does not commute with P: its gain and bias
             are fitted, number by number, to what the wide network's LayerNorm gives.
    heads    those that add most to the stream. Where a head is to have another width than it had, its two products
             (queries with keys, output with values) are replaced by their best approximations of that rank.
    units    of a feed-forward layer, and of the layer inside of a head: those that add most.

What is important is measured on a few texts. A size that stays as it was is left alone to the last bit.

Shapes: D width, H heads, w a head's width, I units; h, H', w', I' those of the narrow network; T tokens.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.errors import JobFailure

_FAMILIES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
# What a module does with the stream, by its name.
_ROLES: Mapping[str, str] = {
    r".*embeddings\.(word|position|token_type)_embeddings": "table",
    r".*embeddings_project": "writes",
    r".*(LayerNorm|_layer_norm)": "norm",
    r".*(attention\.self\.query|attention\.q_lin)": "query",
    r".*(attention\.self\.key|attention\.k_lin)": "key",
    r".*(attention\.self\.value|attention\.v_lin)": "value",
    r".*(attention\.output\.dense|attention\.out_lin)": "context",
    r".*(intermediate\.dense|ffn\.lin1)": "inner",
    r".*(layer\.\d+\.output\.dense|ffn\.lin2)": "outer",
    r".*pooler\.dense|classifier\.dense|pre_classifier": "pooled",
    r"classifier|classifier\.out_proj|qa_outputs": "answers",
}


_Pair = tuple[Tensor, Tensor | None]
"""A module's weight and its bias."""


@dataclass(frozen=True)
class Widths:
    hidden: int
    heads: int
    intermediate: int


@dataclass
class _Seen:
    """Sums over the tokens of the sample, float64."""

    states: Tensor
    """(D, D) second moment of the stream, each state weighing the same."""
    written: dict[str, Tensor] = field(default_factory=dict)
    """Of what each `context` module was given (D, D), and of each unit of what an `outer` module was (I,)."""


def widths_of(network: PreTrainedModel) -> Widths:
    config = network.config
    return Widths(
        *(
            int(getattr(config, _name(config, name)))
            for name in ("hidden_size", "num_attention_heads", "intermediate_size")
        )
    )


def check_narrower(
    network: PreTrainedModel, hidden: int | None, heads: int | None, intermediate: int | None, *, pointer: str
) -> Widths | None:
    """The sizes that are asked for, None being the size that `network` has; None if it has all of them already.

    Without `heads` a head stays as wide as it is. Raises `JobFailure` (`impossible_student`) with what would be
    possible, or `narrower_unsupported` for a family that cannot be made narrower.
    """
    if (hidden, heads, intermediate) == (None, None, None):
        return None
    if network.config.model_type not in _FAMILIES:
        raise _unsupported(network, pointer)
    there = widths_of(network)
    wide = there.hidden // there.heads
    for name, asked, most in (
        ("hidden_size", hidden, there.hidden),
        ("heads", heads, there.heads),
        ("intermediate_size", intermediate, there.intermediate),
    ):
        if asked is not None and asked > most:
            raise _impossible(f"the teacher's {name} is {most}, and {asked} is asked for", f"{pointer}/{name}")
    if hidden is None and heads is not None and heads != there.heads:
        raise _impossible(
            f"{heads} heads of the teacher's width {wide} do not make its hidden_size {there.hidden}",
            f"{pointer}/heads",
            f"give hidden_size too: {heads * wide}",
        )
    hidden = there.hidden if hidden is None else hidden
    if heads is None and hidden % wide:
        near = max(wide, hidden - hidden % wide)
        raise _impossible(
            f"hidden_size {hidden} is not a multiple of {wide}, the width of the teacher's heads",
            f"{pointer}/hidden_size",
            f"ask for {near}, or give heads too",
        )
    heads = hidden // wide if heads is None else heads
    if hidden % heads:
        raise _impossible(
            f"hidden_size {hidden} is not a multiple of heads {heads}",
            f"{pointer}/hidden_size",
            f"ask for {max(heads, hidden - hidden % heads)}",
        )
    if hidden == getattr(network.config, "embedding_size", there.hidden) != there.hidden:
        raise _impossible(
            f"at hidden_size {hidden}, the width of its embedding, the teacher's family has no place for the "
            "projection that stands between the two",
            f"{pointer}/hidden_size",
            f"ask for {hidden + wide} or {hidden - wide}" if hidden > wide else f"ask for {hidden + wide}",
        )
    found = Widths(hidden, heads, there.intermediate if intermediate is None else intermediate)
    return None if found == there else found


def narrow(
    network: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], widths: Widths, *, pointer: str
) -> PreTrainedModel:
    """A new network of `widths` (as `check_narrower` gives them), in evaluation mode, float32, on the CPU.

    `batches` are inputs of the network, without padding; what they show it decides what is kept. The same arguments
    give the same weights; `network` is left as it was. Raises `JobFailure` (`narrower_unsupported`).
    """
    roles = {name: _role(name) for name, _ in _with_weights(network)}
    if not all(roles.values()):
        raise _unsupported(network, pointer)
    there = widths_of(network)
    # A copy: transformers leaves hooks behind in a network that was asked for its states.
    network = copy.deepcopy(network).cpu().float().eval()
    seen = _look(network, batches, roles)
    p = None if widths.hidden == there.hidden else principal_directions(seen.states, widths.hidden)
    fitted = {} if p is None else _fit_norms(network, batches, p)
    old = {
        name: (_whole(module.weight), _whole(getattr(module, "bias", None))) for name, module in _with_weights(network)
    }
    weights = _weights(_Plan(roles, old, seen, there, widths, p, fitted))
    with torch.random.fork_rng(devices=[]):
        small: PreTrainedModel = type(network)(type(network.config).from_dict(_settings(network.config, widths)))
    small.load_state_dict(
        {
            f"{name}.{kind}": tensor.float().contiguous()
            for name, pair in weights.items()
            for kind, tensor in zip(("weight", "bias"), pair, strict=True)
            if tensor is not None
        }
    )
    return small.eval()


def principal_directions(moment: Tensor, count: int) -> Tensor:
    """The `count` orthonormal directions (D, count) that keep most of a second `moment` (D, D): its first eigenvectors.

    The moment is not centred, since nothing else in the narrow network would carry the mean.
    """
    _, vectors = torch.linalg.eigh(moment.double())
    first = vectors.flip(1)[:, :count]
    # An eigenvector's sign is an accident; the largest number of each is made positive.
    signs = first.gather(0, first.abs().argmax(0, keepdim=True)).sign()
    found: Tensor = first * signs
    return found


# --- what the network does --------------------------------------------------------------------------------------------


def _look(network: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], roles: Mapping[str, str]) -> _Seen:
    width = widths_of(network).hidden
    seen = _Seen(torch.zeros(width, width, dtype=torch.float64))
    hooks = [
        module.register_forward_pre_hook(_adder(seen, name, whole=roles[name] == "context"))
        for name, module in _with_weights(network)
        if roles[name] in ("context", "outer")
    ]
    for batch in batches:
        for state in _states(network, batch):
            flat = state.reshape(-1, width).double()
            moment = flat.T @ flat
            # A layer with large numbers is not more important for that.
            seen.states += moment * (len(flat) / moment.trace().clamp_min(1e-12))
    for hook in hooks:
        hook.remove()
    return seen


def _adder(seen: _Seen, name: str, *, whole: bool) -> Any:
    def add(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        del module
        flat = given[0].reshape(-1, given[0].shape[-1]).double()
        moment = flat.T @ flat if whole else flat.square().sum(0)
        seen.written[name] = seen.written.get(name, torch.zeros_like(moment)) + moment

    return add


def _fit_norms(
    network: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], p: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Gain and bias (h,) of each LayerNorm of the stream: the least-squares fit of y·P by the normalised x·P."""
    sums: dict[str, Tensor] = {}

    def hook(name: str, eps: float) -> Any:
        def add(module: nn.Module, given: tuple[Tensor, ...], gives: Tensor) -> None:
            del module
            x = given[0].reshape(-1, len(p)).double() @ p
            u = nn.functional.layer_norm(x, x.shape[1:], eps=eps)
            y = gives.reshape(-1, len(p)).double() @ p
            found = torch.stack([torch.ones_like(u), u, y, u * u, u * y]).sum(1)
            sums[name] = sums.get(name, torch.zeros_like(found)) + found

        return add

    hooks = [
        module.register_forward_hook(hook(name, module.eps))
        for name, module in network.named_modules()
        if isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == (len(p),)
    ]
    for batch in batches:
        _states(network, batch)
    for one in hooks:
        one.remove()
    fitted = {}
    for name, (n, u, y, uu, uy) in sums.items():
        spread = uu - u * u / n
        gain = torch.where(spread > 1e-9 * n, (uy - u * y / n) / spread.clamp_min(1e-12), 0.0)
        fitted[name] = (gain, (y - gain * u) / n)
    return fitted


@torch.no_grad()
def _states(network: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The stream after the embedding and after each layer, (B, L, D) each."""
    found: tuple[Tensor, ...] = network(**batch, output_hidden_states=True).hidden_states
    return found


# --- weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """All that decides the weights. `old` has the weight and bias of each module, float64; `p` None: the same width."""

    roles: Mapping[str, str]
    old: Mapping[str, _Pair]
    seen: _Seen
    there: Widths
    widths: Widths
    p: Tensor | None
    fitted: Mapping[str, tuple[Tensor, Tensor]]


def _weights(plan: _Plan) -> dict[str, _Pair]:
    """The narrow weight and bias of each module."""
    new: dict[str, _Pair] = dict(plan.fitted)
    for name, (weight, bias) in plan.old.items():
        match plan.roles[name]:
            case "table" if weight.shape[1] == plan.there.hidden:
                new[name] = (_read(weight, plan.p), None)
            case "writes":
                new[name] = (_write(weight, plan.p), _write(bias, plan.p))
            case "context":
                new |= _attention(plan, name)
            case "outer":
                new |= _feed_forward(plan, name)
            case "answers":
                new |= _answers(plan, name)
            case (
                "table" | "norm"
            ):  # of an embedding that is not as wide as the stream, or of a stream as wide as it was
                new.setdefault(name, (weight, bias))
    return new


def _answers(plan: _Plan, name: str) -> dict[str, _Pair]:
    """The layer that answers, and the one before it if there is one."""
    weight, bias = plan.old[name]
    before = next((other for other, role in plan.roles.items() if role == "pooled"), None)
    if before is None:
        return {name: (_read(weight, plan.p), bias)}
    reads, its = plan.old[before]
    units = _best(reads.norm(dim=1) * weight.norm(dim=0), plan.widths.hidden)
    return {before: (_read(reads, plan.p)[units], _at(its, units)), name: (weight[:, units], bias)}


def _feed_forward(plan: _Plan, name: str) -> dict[str, _Pair]:
    inner = _partner(name, "inner", plan.roles)
    writes, reads = _write(plan.old[name][0], plan.p), _read(plan.old[inner][0], plan.p)
    units = _best(plan.seen.written[name] * writes.square().sum(0), plan.widths.intermediate)
    return {
        inner: (reads[units], _at(plan.old[inner][1], units)),
        name: (writes[:, units], _write(plan.old[name][1], plan.p)),
    }


def _attention(plan: _Plan, name: str) -> dict[str, _Pair]:
    """The four matrices of the attention whose output is `name`, with the heads that add most."""
    roles, old, seen, widths, there, p = plan.roles, plan.old, plan.seen, plan.widths, plan.there, plan.p
    names = [_partner(name, role, roles) for role in ("query", "key", "value")]
    output = _write(old[name][0], p)
    wide, narrow_to = there.hidden // there.heads, widths.hidden // widths.heads
    blocks = [slice(head * wide, (head + 1) * wide) for head in range(there.heads)]
    # E‖O·c‖² of a head's part c of the context is the trace of Oᵀ·O·E[c·cᵀ].
    power = torch.stack([(output[:, at].T @ output[:, at] * seen.written[name][at, at]).sum() for at in blocks])
    chosen = [blocks[head] for head in _best(power, widths.heads).tolist()]
    # A bias is one more input that is always 1.
    reads = [
        torch.cat([_read(weight, p), _column(bias, weight)], dim=1) for weight, bias in (old[one] for one in names)
    ]
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for at in chosen:
        query, key, value, out = reads[0][at], reads[1][at], reads[2][at], output[:, at]
        if narrow_to != wide:
            left, key = _factors(query.T, key, narrow_to)
            # Scores are divided by the root of a head's width.
            query = left.T * (narrow_to / wide) ** 0.5
            out, value = _factors(out, value, narrow_to)
        parts.append((query, key, value, out))
    queries, keys, values, outs = zip(*parts, strict=True)
    new: dict[str, _Pair] = {name: (torch.cat(outs, dim=1), _write(old[name][1], p))}
    for one, rows in zip(names, (queries, keys, values), strict=True):
        stacked = torch.cat(rows)
        new[one] = (stacked[:, :-1], stacked[:, -1])
    return new


def _factors(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (m, rank) and (rank, n) whose product is nearest to `left` (m, w) · `right` (w, n)."""
    basis_left, small_left = torch.linalg.qr(left)
    basis_right, small_right = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(small_left @ small_right.T)
    root = s[:rank].sqrt()
    found_left, found_right = basis_left @ u[:, :rank] * root, (basis_right @ v[:rank].T * root).T
    missing = rank - len(root)
    return nn.functional.pad(found_left, (0, missing)), nn.functional.pad(found_right, (0, 0, 0, missing))


def _best(power: Tensor, count: int) -> Tensor:
    """The places of the `count` largest, ascending; of equal ones the first."""
    return power.argsort(descending=True, stable=True)[:count].sort().values


def _read(weight: Tensor, p: Tensor | None) -> Tensor:
    return weight if p is None else weight @ p


def _write(weight: Any, p: Tensor | None) -> Any:
    return weight if p is None or weight is None else p.T @ weight


def _at(bias: Tensor | None, places: Tensor) -> Tensor | None:
    return None if bias is None else bias[places]


def _column(bias: Tensor | None, weight: Tensor) -> Tensor:
    return (torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)[:, None]


def _whole(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().double()


# --- names ------------------------------------------------------------------------------------------------------------


def _with_weights(network: PreTrainedModel) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in network.named_modules() if module._parameters]  # noqa: SLF001


def _role(name: str) -> str:
    return next((role for pattern, role in _ROLES.items() if re.fullmatch(pattern, name)), "")


def _partner(name: str, role: str, roles: Mapping[str, str]) -> str:
    """The module of `role` in the same layer as `name`."""
    layer = re.match(r".*?layer\.\d+\.", name)
    if layer is None:
        raise ValueError(f"{name} is in no layer")
    return next(other for other, its in roles.items() if its == role and other.startswith(layer[0]))


def _name(config: Any, name: str) -> str:
    """What a family calls a setting of BERT's."""
    if config.model_type == "distilbert" and name == "intermediate_size":
        return "hidden_dim"
    return str(getattr(config, "attribute_map", {}).get(name, name))


def _settings(config: Any, widths: Widths) -> dict[str, Any]:
    sizes = {
        "hidden_size": widths.hidden,
        "num_attention_heads": widths.heads,
        "intermediate_size": widths.intermediate,
    }
    settings: dict[str, Any] = config.to_dict()
    # ELECTRA's embedding is part of the stream unless it has a width of its own.
    if settings.get("embedding_size") == config.hidden_size:
        settings["embedding_size"] = widths.hidden
    return settings | {_name(config, name): size for name, size in sizes.items()}


# --- refusals ---------------------------------------------------------------------------------------------------------


def _impossible(message: str, pointer: str, hint: str | None = None) -> JobFailure:
    return JobFailure(message, code="impossible_student", hint=hint, pointer=pointer)


def _unsupported(network: PreTrainedModel, pointer: str) -> JobFailure:
    return JobFailure(
        f"a {network.config.model_type!r} network cannot be made narrower",
        code="narrower_unsupported",
        hint="leave hidden_size, heads and intermediate_size out, or choose a pretrained or fresh student; "
        "BERT, RoBERTa, XLM-R, ELECTRA and DistilBERT can be made narrower",
        pointer=pointer,
    )
