"""Estimates against the networks themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from app.routes.estimates import estimate
from models import specs

CONFIGS = {
    "bert": BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, vocab_size=500
    ),
    "roberta": RobertaConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, vocab_size=500
    ),
    "distilbert": DistilBertConfig(dim=32, n_layers=4, n_heads=2, hidden_dim=64, vocab_size=500),
    "electra": ElectraConfig(
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=500,
    ),
}


def estimated(folder: Path, config: Any, **student: Any) -> Any:
    (folder / "teacher").mkdir()
    (folder / "teacher" / "config.json").write_text(json.dumps(config.to_dict()))
    spec = specs.parse_job(
        {
            "task": {"kind": "text-classification", "text": "t", "label": "l"},
            "dataset": {"id": "ds_1"},
            "teachers": [{"kind": "local", "model": "file:teacher"}],
            "student": student,
        }
    )
    return estimate(spec, specs.resolve(spec), folder)


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_are_those_of_the_network(tmp_path: Path, family: str) -> None:
    config = CONFIGS[family]
    network = AutoModel.from_config(config, **({"add_pooling_layer": False} if family == "roberta" else {}))
    found = estimated(tmp_path, config, kind="from_teacher", layers=2, vocabulary=200)
    assert found.reason is None
    assert found.found["parameters"]["teacher"] == sum(weight.numel() for weight in network.parameters())
    assert found.found["parameters"]["student"] < found.found["parameters"]["teacher"]
    assert found.found["layers"] == {"teacher": 4, "student": 2}


def test_a_fresh_student(tmp_path: Path) -> None:
    found = estimated(tmp_path, CONFIGS["bert"], kind="fresh", layers=1, hidden_size=16, heads=2, intermediate_size=32)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=500
    )
    expected = sum(weight.numel() for weight in BertModel(config).parameters())
    assert found.found["parameters"]["student"] == expected


@pytest.mark.parametrize(
    ("student", "pointer"),
    [
        ({"layers": 5}, "/student/layers"),
        ({"layers": [1, 4]}, "/student/layers/1"),
        ({"vocabulary": 501}, "/student/vocabulary"),
    ],
)
def test_the_impossible(tmp_path: Path, student: dict[str, Any], pointer: str) -> None:
    found = estimated(tmp_path, CONFIGS["bert"], kind="from_teacher", **student)
    assert [problem.pointer for problem in found.problems] == [pointer]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mamba"},
        {"model_type": "bert"},
        {"model_type": "bert", "hidden_size": "x"},
        {"model_type": []},
    ],
)
def test_a_config_that_says_too_little(tmp_path: Path, config: dict[str, Any]) -> None:
    class Raw:
        def to_dict(self) -> dict[str, Any]:
            return config

    found = estimated(tmp_path, Raw(), kind="from_teacher", layers=2)
    assert found.found is None
    assert found.reason
    assert found.problems == []
