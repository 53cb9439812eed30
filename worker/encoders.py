"""Where the parts of an encoder stand: a small table of the families that can be looked into and narrowed.

BERT (MiniLM too), RoBERTa, XLM-RoBERTa, ELECTRA, DistilBERT, DeBERTa-v2 and -v3, ModernBERT. Everything else works with
an encoder only through `Encoder`; a family that is not in the table is refused, and never guessed at.

Does not know objectives, students or training.

Shapes: B rows, L tokens, D width, H heads, A width of the concatenated heads (mostly D).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from models.errors import JobFailure


@dataclass(frozen=True)
class Projections:
    """The matrices of one layer, and the norms that stand around them."""

    qkv: tuple[nn.Linear, ...]
    """Queries, keys and values, D → A each; or one fused D → 3·A, queries first (ModernBERT)."""
    attention_output: nn.Linear
    """A → D."""
    feed_forward_in: nn.Linear
    """D → units; to twice as many where it is gated (ModernBERT): the units, then their gates."""
    feed_forward_out: nn.Linear
    """Units → D."""
    norms: tuple[nn.Module, ...]
    """That of attention, then that of the feed-forward part."""
    positions: tuple[nn.Linear, ...] = ()
    """Of relative positions, D → A each, where they have their own (some DeBERTa-v2)."""

    @property
    def fused(self) -> bool:
        return len(self.qkv) == 1

    @property
    def gated(self) -> bool:
        return self.feed_forward_in.out_features == 2 * self.feed_forward_out.in_features


@dataclass(frozen=True)
class _Family:
    """Dotted names: `layers` and `embeddings` inside of the body, the others inside of a layer."""

    layers: str
    embeddings: tuple[str, ...]
    """The first one that a network has is meant."""
    attention: str
    qkv: tuple[str, ...]
    attention_output: str
    feed_forward: tuple[str, str]
    norms: tuple[str, str]
    scores: "Callable[[Encoder, int, Tensor, Tensor], Tensor]"
    positions: tuple[str, ...] = ()
    """Those that a network has are meant."""


@dataclass(frozen=True)
class Encoder:
    """A network, and where its parts stand."""

    network: PreTrainedModel
    """As it was given, head included."""
    body: PreTrainedModel
    """Without its head."""
    family: str
    """`config.model_type`."""
    layer_list: str
    """The dotted name, in `network`, of the list of layers."""
    layers: Sequence[nn.Module]
    embeddings: nn.Module
    """Its output (B, L, D) is hidden state 0: after the norm, and after the projection where there is one."""
    heads: int
    hidden_size: int

    @property
    def attention_size(self) -> int:
        """A: the width of all heads together."""
        return int(self.projections(0).attention_output.in_features)

    def states(self) -> tuple[nn.Module, ...]:
        """The modules whose outputs are the hidden states 0…M; an output is a tensor (B, L, D), or a tuple of one."""
        # The larger DeBERTa-v2 add a convolution to what the first layer says.
        convolution = getattr(getattr(self.body, "encoder", None), "conv", None)
        first, *others = self.layers
        return (self.embeddings, first if convolution is None else convolution, *others)

    def projections(self, layer: int) -> Projections:
        """Those of layer `layer`, 0-based."""
        family, module = _FAMILIES[self.family], self.layers[layer]

        def linear(name: str) -> nn.Linear:
            found = module.get_submodule(name)
            if not isinstance(found, nn.Linear):
                raise TypeError(f"{name} is not a linear layer")
            return found

        names = {name for name, _ in module.named_modules()}
        inner, outer = family.feed_forward
        return Projections(
            tuple(linear(name) for name in family.qkv),
            linear(family.attention_output),
            linear(inner),
            linear(outer),
            tuple(module.get_submodule(name) for name in family.norms),
            tuple(linear(name) for name in family.positions if name in names),
        )

    def scores(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        """The attention scores (B, H, L, L), before any mask and the softmax, from the outputs (B, L, A) of Q and K.

        Dropout of relative positions (DeBERTa-v2, in training) is left out.
        """
        return _FAMILIES[self.family].scores(self, layer, query, key)

    def attention(self, layer: int) -> Any:
        """The self-attention module of layer `layer`."""
        return self.layers[layer].get_submodule(_FAMILIES[self.family].attention)

    def window(self, layer: int) -> int | None:
        """How many tokens away, on either side, a token of this layer still sees another; None: every one."""
        if getattr(self.attention(layer), "sliding_window", None) is None:
            return None
        return int(self.body.config.sliding_window)


def encoder_of(network: PreTrainedModel, pointer: str = "") -> Encoder:
    """`network` with its parts found. Raises `JobFailure` (`architecture_unsupported`) that names what is missing."""
    body = network.base_model
    model_type = str(network.config.model_type)
    family = _FAMILIES.get(model_type)
    if family is None:
        raise _unsupported(f"the family {model_type!r} is not known inside", pointer)
    if getattr(network.config, "is_decoder", False):
        raise _unsupported(f"this {model_type!r} network reads as a decoder", pointer)
    try:
        layers = body.get_submodule(family.layers)
        names = {name for name, _ in body.named_modules()}
        chosen = next((name for name in family.embeddings if name in names), family.embeddings[-1])
        found = Encoder(
            network=network,
            body=body,
            family=model_type,
            layer_list=family.layers if body is network else f"{network.base_model_prefix}.{family.layers}",
            layers=tuple(layers.children()),
            embeddings=body.get_submodule(chosen),
            heads=int(network.config.num_attention_heads),
            hidden_size=int(network.config.hidden_size),
        )
        for layer in range(len(found.layers)):
            found.projections(layer)
            found.attention(layer)
    except (AttributeError, TypeError) as error:
        raise _unsupported(f"this {model_type!r} network lacks a part: {error}", pointer) from error
    return found


def split_qkv(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, L, A) from the outputs of `Projections.qkv`."""
    query, key, value = outputs if len(outputs) == 3 else outputs[0].chunk(3, dim=-1)
    return query, key, value


def split_heads(joined: Tensor, heads: int) -> Tensor:
    """(B, L, A) → (B, heads, L, A / heads)."""
    return joined.view(*joined.shape[:-1], heads, -1).transpose(1, 2)


def _unsupported(what: str, pointer: str) -> JobFailure:
    return JobFailure(
        what,
        code="architecture_unsupported",
        hint=f"objectives that look inside, and narrower students, need one of {', '.join(sorted(_FAMILIES))}",
        pointer=pointer or None,
    )


# --- attention scores -------------------------------------------------------------------------------------------------


def _products(q: Tensor, k: Tensor, terms: int = 1) -> Tensor:
    """`q·kᵀ/√(d·terms)`."""
    return torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1] * terms)


def _scaled_products(encoder: Encoder, layer: int, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
    """`q·kᵀ/√d`."""
    q, k = split_heads(query, encoder.heads), split_heads(key, encoder.heads)
    return _products(q, k)


def _rotated_products(encoder: Encoder, layer: int, query: Tensor, key: Tensor) -> Tensor:
    """ModernBERT turns queries and keys by their positions after the projection."""
    q, k = split_heads(query, encoder.heads), split_heads(key, encoder.heads)
    positions = torch.arange(q.shape[-2], device=q.device).unsqueeze(0)
    cosine, sine = encoder.body.rotary_emb(q, positions, encoder.body.config.layer_types[layer])
    q, k = apply_rotary_pos_emb(q, k, cosine, sine)
    return _products(q, k)


def _disentangled_products(encoder: Encoder, layer: int, query: Tensor, key: Tensor) -> Tensor:
    """DeBERTa-v2 adds content-to-position and position-to-content terms (arXiv:2006.03654)."""
    attention, stack = encoder.attention(layer), encoder.body.encoder
    # Rows and heads in one axis, as its own code has them; positions are projected by weights in their own precision.
    weight = attention.query_proj.weight
    q, k = (split_heads(one, encoder.heads).flatten(0, 1).to(weight.dtype) for one in (query, key))
    factor = 1 + sum(term in attention.pos_att_type for term in ("c2p", "p2c"))
    scores = _products(q, k, factor)
    if attention.relative_attention:
        distances = build_relative_position(
            q, k, bucket_size=stack.position_buckets, max_position=stack.max_relative_positions
        )
        scores = scores + attention.disentangled_attention_bias(q, k, distances, stack.get_rel_embedding(), factor)
    return scores.view(-1, encoder.heads, *scores.shape[1:])


# --- the table --------------------------------------------------------------------------------------------------------

_BERT = _Family(
    layers="encoder.layer",
    embeddings=("embeddings",),
    attention="attention.self",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_output="attention.output.dense",
    feed_forward=("intermediate.dense", "output.dense"),
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    scores=_scaled_products,
)

_ELECTRA = replace(_BERT, embeddings=("embeddings_project", "embeddings"))

_DISTILBERT = _Family(
    layers="transformer.layer",
    embeddings=("embeddings",),
    attention="attention",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_output="attention.out_lin",
    feed_forward=("ffn.lin1", "ffn.lin2"),
    norms=("sa_layer_norm", "output_layer_norm"),
    scores=_scaled_products,
)

_DEBERTA = replace(
    _BERT,
    qkv=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
    scores=_disentangled_products,
    positions=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
)

_MODERNBERT = _Family(
    layers="layers",
    embeddings=("embeddings",),
    attention="attn",
    qkv=("attn.Wqkv",),
    attention_output="attn.Wo",
    feed_forward=("mlp.Wi", "mlp.Wo"),
    norms=("attn_norm", "mlp_norm"),
    scores=_rotated_products,
)

_FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _ELECTRA,
    "distilbert": _DISTILBERT,
    "deberta-v2": _DEBERTA,
    "modernbert": _MODERNBERT,
}

FAMILIES = tuple(sorted(_FAMILIES))
"""The `config.model_type` of every family that is known inside."""
