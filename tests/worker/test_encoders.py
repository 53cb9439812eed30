"""Every family of the table is found inside, and its attention scores are those that the network really uses."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from models.errors import JobFailure
from worker.encoders import FAMILIES, encoder_of, split_heads, split_qkv

_COMMON = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
_DEBERTA = {**_COMMON, "relative_attention": True, "position_buckets": 6, "norm_rel_ebd": "layer_norm"}

CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**_COMMON),
    "roberta": RobertaConfig(**_COMMON),
    "xlm-roberta": XLMRobertaConfig(**_COMMON),
    "electra": ElectraConfig(**_COMMON, embedding_size=16),
    "electra-large": ElectraConfig(**_COMMON, embedding_size=32),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40, pad_token_id=0
    ),
    # As deberta-v3-small, and as deberta-v2-xlarge with its convolution.
    "deberta-v3": DebertaV2Config(**_DEBERTA, pos_att_type=["p2c", "c2p"], share_att_key=True, type_vocab_size=0),
    "deberta-v2-conv": DebertaV2Config(**_DEBERTA, pos_att_type=["c2p"], conv_kernel_size=3),
    # One layer that sees everything, and one that sees two tokens to either side.
    "modernbert": ModernBertConfig(
        **_COMMON,
        global_attn_every_n_layers=2,
        local_attention=4,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def network_of(name: str, *, body: bool = False, attention: str = "eager") -> PreTrainedModel:
    # Large random weights: the attention of small ones is nearly even, and would match whatever is computed.
    made = AutoModel if body else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = made.from_config(CONFIGS[name], attn_implementation=attention)
        for parameter in network.parameters():
            parameter.data += torch.randn_like(parameter) * 0.3
    return network.eval()


def rows() -> dict[str, Tensor]:
    ids = torch.tensor([[1, 7, 30, 31, 9, 12, 44, 2], [1, 8, 20, 2, 0, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def outputs_of(modules: Sequence[nn.Module], network: PreTrainedModel) -> tuple[list[Tensor], Any]:
    """What each of `modules` says at its first call, and what the network says."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.setdefault(module, output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        said = network(**rows(), output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    return [found[module] for module in modules], said


def test_the_table_is_tested_as_a_whole() -> None:
    assert {config.model_type for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("body", [False, True], ids=["with its head", "body"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_parts_of_every_family_are_found(name: str, body: bool) -> None:
    network = network_of(name, body=body)

    encoder = encoder_of(network)

    assert (len(encoder.layers), encoder.heads, encoder.hidden_size, encoder.attention_size) == (2, 4, 32, 32)
    assert list(encoder.layers) == list(network.get_submodule(encoder.layer_list).children())
    for layer in range(2):
        found = encoder.projections(layer)
        assert [one.in_features for one in found.qkv] == [32] * len(found.qkv)
        assert sum(one.out_features for one in found.qkv) == 3 * 32
        assert found.fused == (name == "modernbert")
        assert (found.attention_output.in_features, found.attention_output.out_features) == (32, 32)
        units = 2 * 48 if found.gated else 48
        assert (found.feed_forward_in.in_features, found.feed_forward_in.out_features) == (32, units)
        assert (found.feed_forward_out.in_features, found.feed_forward_out.out_features) == (48, 32)
        assert found.gated == (name == "modernbert")
        assert [one.out_features for one in found.positions] == [32] * (name == "deberta-v2-conv")
        # Every parameter of a layer belongs to one of the parts.
        attention = (*found.qkv, *found.positions, found.attention_output)
        known = {id(value) for part in attention for value in part.parameters()}
        known |= {id(value) for part in (found.feed_forward_in, found.feed_forward_out) for value in part.parameters()}
        known |= {id(value) for norm in found.norms for value in norm.parameters()}
        assert known == {id(value) for value in encoder.layers[layer].parameters()}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_states_are_the_hidden_states_that_the_network_reports(name: str) -> None:
    network = network_of(name)

    states, said = outputs_of(encoder_of(network).states(), network)

    assert len(states) == len(said.hidden_states) == 3
    # ModernBERT's last one is reported after its final norm.
    reported = said.hidden_states[:-1] if name == "modernbert" else said.hidden_states
    for state, expected in zip(states, reported, strict=False):
        torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_softmax_of_the_scores_is_the_attention_that_the_network_uses(name: str, layer: int) -> None:
    network = network_of(name)
    encoder = encoder_of(network)
    outputs, said = outputs_of(encoder.projections(layer).qkv, network)
    query, key, _ = split_qkv(outputs)

    scores = encoder.scores(layer, query, key)

    attention, valid = said.attentions[layer], rows()["attention_mask"].bool()
    seen = valid[:, None, None, :]
    window = encoder.window(layer)
    assert (window is None) == (name != "modernbert" or layer == 0)
    if window is not None:
        place = torch.arange(8)
        seen = seen & ((place[:, None] - place[None, :]).abs() <= window)
    expected = scores.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)
    asked = valid[:, None, :, None].expand_as(attention)
    torch.testing.assert_close(expected[asked], attention[asked], rtol=1e-4, atol=1e-5)
    # It is a real test only where attention is far from even.
    assert float(attention[0].amax(-1).mean()) > 0.3


def test_queries_keys_and_values_come_in_this_order() -> None:
    network = network_of("modernbert")
    encoder = encoder_of(network)
    attention = encoder.attention(0)
    (fused,), _ = outputs_of(encoder.projections(0).qkv, network)

    split = split_qkv([fused])

    own = fused.view(2, 8, 3, -1, attention.head_dim).unbind(-3)
    for one, expected in zip(split, own, strict=True):
        assert torch.equal(split_heads(one, 4), expected.transpose(1, 2))


def test_an_unknown_family_is_refused() -> None:
    network = AutoModel.from_config(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1, n_positions=8))

    with pytest.raises(JobFailure, match="'gpt2'") as failure:
        encoder_of(network, "/stages/0/student")

    assert failure.value.code == "architecture_unsupported"
    assert failure.value.pointer == "/stages/0/student"
    assert "modernbert" in str(failure.value.hint)


def test_a_network_that_reads_as_a_decoder_is_refused() -> None:
    network = AutoModel.from_config(BertConfig(**_COMMON, is_decoder=True))

    with pytest.raises(JobFailure, match="decoder") as failure:
        encoder_of(network)

    assert failure.value.code == "architecture_unsupported"


@pytest.mark.parametrize("part", ["encoder.layer.1.attention.self.key", "embeddings", "encoder.layer"])
def test_a_missing_part_is_named(part: str) -> None:
    network = network_of("bert", body=True)
    parent, _, name = part.rpartition(".")
    delattr(network.get_submodule(parent), name)

    with pytest.raises(JobFailure, match=name) as failure:
        encoder_of(network)

    assert failure.value.code == "architecture_unsupported"
