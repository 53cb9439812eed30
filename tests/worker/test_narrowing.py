"""`worker.narrowing`: fewer dimensions, heads and units, and nothing lost that was not given up."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from models.errors import JobFailure
from worker import narrowing
from worker.narrowing import Widths, check_narrower, narrow, principal_directions

SIZES = {"vocab_size": 60, "pad_token_id": 1, "num_labels": 2, "type_vocab_size": 2}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CONFIGS = {
    "bert": BertConfig(**SIZES, **WIDE),
    "roberta": RobertaConfig(**SIZES, **WIDE),
    "xlm-roberta": XLMRobertaConfig(**SIZES, **WIDE),
    "electra": ElectraConfig(**SIZES, **WIDE, embedding_size=24),
    "electra as wide": ElectraConfig(**SIZES, **WIDE, embedding_size=32),
    "distilbert": DistilBertConfig(
        vocab_size=60, pad_token_id=1, num_labels=2, dim=32, n_layers=2, n_heads=4, hidden_dim=48
    ),
}
CLASSES = {
    "text": AutoModelForSequenceClassification,
    "words": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
}


def network(family: str = "bert", shape: str = "text") -> Any:
    """A tiny network whose weights are large enough for its parts to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = CLASSES[shape].from_config(CONFIGS[family])
        for name, weight in made.named_parameters():
            if "norm" not in name.lower():
                nn.init.normal_(weight, std=0.15)
    return made.eval()


def batches(count: int = 12) -> list[dict[str, Tensor]]:
    random = np.random.default_rng(0)
    return [{"input_ids": torch.from_numpy(random.integers(2, 60, (1, 5 + place)))} for place in range(count)]


def outputs(made: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = made(**batch)
    return found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits], -1)


def to(made: Any, **asked: int) -> Any:
    sizes = {"hidden": None, "heads": None, "intermediate": None, **asked}
    widths = check_narrower(made, **sizes, pointer="/student")
    assert widths is not None
    return narrow(made, batches(), widths, pointer="/student")


class TestShapes:
    @pytest.mark.parametrize("family", CONFIGS)
    @pytest.mark.parametrize("shape", CLASSES)
    def test_every_family_with_every_head(self, family: str, shape: str) -> None:
        made = network(family, shape)
        small = to(made, hidden=16, intermediate=24)
        assert narrowing.widths_of(small) == Widths(16, 2, 24)
        assert type(small) is type(made)
        batch = batches()[3]
        assert outputs(small, batch).shape == outputs(made, batch).shape
        assert torch.isfinite(outputs(small, batch)).all()
        assert sum(map(torch.numel, small.parameters())) < 0.65 * sum(map(torch.numel, made.parameters()))

    def test_an_embedding_of_its_own_width_stays(self) -> None:
        made = network("electra")
        small = to(made, hidden=16)
        assert torch.equal(small.get_input_embeddings().weight, made.get_input_embeddings().weight)
        assert small.electra.embeddings_project.weight.shape == (16, 24)
        assert to(network("electra as wide"), hidden=16).config.embedding_size == 16

    def test_the_same_each_time_and_nothing_else_changes(self) -> None:
        made = network().train()
        before = {name: weight.clone() for name, weight in made.state_dict().items()}
        state = torch.get_rng_state()
        one, same = to(made, hidden=16, heads=4), to(made, hidden=16, heads=4)
        assert torch.equal(state, torch.get_rng_state())
        assert made.training
        assert not one.training
        assert all(torch.equal(before[name], weight) for name, weight in made.state_dict().items())
        assert all(map(torch.equal, one.state_dict().values(), same.state_dict().values()))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())


class TestNothingIsLost:
    @pytest.mark.parametrize("family", CONFIGS)
    def test_units_that_do_nothing(self, family: str) -> None:
        made = network(family)
        inner = [module for name, module in made.named_modules() if narrowing._role(name) == "inner"]
        assert len(inner) == 2
        with torch.no_grad():
            for module in inner:
                module.weight[5:29].zero_()
                module.bias[5:29].zero_()
        small = to(made, intermediate=24)
        for batch in batches():
            assert torch.allclose(outputs(small, batch), outputs(made, batch), atol=1e-6)
        for name, weight in small.state_dict().items():
            if "norm" in name.lower() or "embeddings" in name:
                assert torch.equal(weight, made.state_dict()[name])

    def test_units_are_taken_in_order_with_their_weights(self) -> None:
        made = network()
        small = to(made, intermediate=24)
        wide, few = made.bert.encoder.layer[0], small.bert.encoder.layer[0]
        rows = wide.intermediate.dense.weight.tolist()
        kept = [rows.index(row) for row in few.intermediate.dense.weight.tolist()]
        assert kept == sorted(kept)
        assert torch.equal(few.output.dense.weight, wide.output.dense.weight[:, kept])
        assert torch.equal(few.intermediate.dense.bias, wide.intermediate.dense.bias[kept])

    def test_heads_that_do_nothing(self) -> None:
        """The other two become twice as wide, which a head can without becoming another function."""
        made = network()
        with torch.no_grad():
            for layer in made.bert.encoder.layer:
                layer.attention.output.dense.weight[:, 8:24].zero_()
        small = to(made, hidden=32, heads=2)
        assert narrowing.widths_of(small) == Widths(32, 2, 48)
        for batch in batches():
            assert torch.allclose(outputs(small, batch), outputs(made, batch), atol=1e-4)

    def test_heads_of_less_rank_than_they_are_wide(self) -> None:
        left, right = torch.randn(9, 3, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
        whole = torch.cat([left, left], 1), torch.cat([right, -0.5 * right])
        few, of_them = narrowing._factors(*whole, 3)
        assert (few.shape, of_them.shape) == ((9, 3), (3, 7))
        assert torch.allclose(few @ of_them, 0.5 * left @ right)

    def test_the_best_approximation_of_a_rank(self) -> None:
        """Eckart and Young: what is lost is the singular values that are left out."""
        left, right = torch.randn(9, 6, dtype=torch.float64), torch.randn(6, 7, dtype=torch.float64)
        few, of_them = narrowing._factors(left, right, 2)
        lost = torch.linalg.svdvals(left @ right)[2:].square().sum()
        assert torch.allclose((left @ right - few @ of_them).square().sum(), lost)


class TestPrincipalDirections:
    def test_they_keep_what_pca_keeps(self) -> None:
        random = np.random.default_rng(0)
        rows = random.normal(size=(200, 12)) @ random.normal(size=(12, 12))
        p = principal_directions(torch.from_numpy(rows.T @ rows), 5)
        assert torch.allclose(p.T @ p, torch.eye(5, dtype=torch.float64))
        kept = np.square(rows @ p.numpy()).sum()
        assert kept == pytest.approx(np.square(np.linalg.svd(rows, compute_uv=False)[:5]).sum())

    def test_a_narrow_stream_is_the_wide_one_projected(self) -> None:
        """In a network whose layers add nothing and whose states lie in few dimensions, only the LayerNorms differ."""
        made = network()
        small = to(made, hidden=24)
        seen = narrowing._look(made, batches(), {name: "" for name, _ in narrowing._with_weights(made)})
        p = principal_directions(seen.states, 24).float()
        assert torch.allclose(
            small.bert.embeddings.word_embeddings.weight, made.bert.embeddings.word_embeddings.weight @ p, atol=1e-5
        )
        wanted, found = [], []
        for batch in batches():
            with torch.no_grad():
                wanted.append(made(**batch, output_hidden_states=True).hidden_states[0][0] @ p)
                found.append(small(**batch, output_hidden_states=True).hidden_states[0][0])
        lost = (torch.cat(wanted) - torch.cat(found)).square().mean() / torch.cat(wanted).var()
        assert lost < 0.25


def refused(family: str = "bert", **asked: int) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        to(network(family), **asked)
    assert caught.value.code == "impossible_student"
    return caught.value


class TestRefusals:
    @pytest.mark.parametrize(
        ("asked", "pointer", "hint"),
        [
            ({"hidden": 40}, "/student/hidden_size", None),
            ({"heads": 5}, "/student/heads", None),
            ({"intermediate": 49}, "/student/intermediate_size", None),
            ({"heads": 2}, "/student/heads", "give hidden_size too: 16"),
            ({"hidden": 20}, "/student/hidden_size", "ask for 16, or give heads too"),
            ({"hidden": 20, "heads": 3}, "/student/hidden_size", "ask for 18"),
        ],
    )
    def test_sizes_that_cannot_be(self, asked: dict[str, int], pointer: str, hint: str | None) -> None:
        failure = refused(**asked)
        assert (failure.pointer, failure.hint) == (pointer, hint)

    def test_the_width_of_its_embedding(self) -> None:
        failure = refused("electra", hidden=24)
        assert (failure.pointer, failure.hint) == ("/student/hidden_size", "ask for 32 or 16")

    def test_sizes_that_it_has(self) -> None:
        asked = {"hidden": 32, "heads": 4, "intermediate": 48}
        assert check_narrower(network("distilbert"), **asked, pointer="") is None

    def test_another_family(self) -> None:
        config = AlbertConfig(**SIZES, **WIDE, embedding_size=16)
        made = AlbertForSequenceClassification(config)
        assert check_narrower(made, None, None, None, pointer="") is None
        with pytest.raises(JobFailure) as caught:
            check_narrower(made, 16, None, None, pointer="/student")
        assert caught.value.code == "narrower_unsupported"

    def test_a_network_with_parts_of_its_own(self) -> None:
        made = network()
        made.bert.extra = nn.Linear(32, 32)
        with pytest.raises(JobFailure) as caught:
            to(made, hidden=16)
        assert caught.value.code == "narrower_unsupported"
