"""Estimates against the networks themselves."""

import json
from pathlib import Path
from typing import Any, ClassVar

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
        ({"hidden_size": 40}, "/student/hidden_size"),
        ({"hidden_size": 24}, "/student/hidden_size"),
        ({"hidden_size": 24, "heads": 1, "intermediate_size": 65}, "/student/intermediate_size"),
        ({"heads": 1}, "/student/heads"),
        ({"heads": 3}, "/student/heads"),
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


QA = {"kind": "question-answering", "question": "q", "context": "c", "answers": "a"}
LOCAL = {"kind": "local", "model": "file:teacher"}


def whole(folder: Path, **document: Any) -> Any:
    """The estimates of a spec about a BERT of 4 layers, `file:teacher`, and one of 2 layers, `file:small`."""
    for name, layers in (("teacher", 4), ("small", 2)):
        (folder / name).mkdir()
        config = CONFIGS["bert"].to_dict() | {"num_hidden_layers": layers}
        (folder / name / "config.json").write_text(json.dumps(config))
    common = {"task": {"kind": "text-classification", "text": "t", "label": "l"}, "dataset": {"id": "ds_1"}}
    spec = specs.parse_job({**common, "teachers": [LOCAL], **document})
    return estimate(spec, specs.resolve(spec), folder)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_narrower_student(tmp_path: Path, family: str) -> None:
    config = CONFIGS[family]
    narrow = {
        "distilbert": {"dim": 16, "n_heads": 1, "hidden_dim": 24},
        "electra": {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 24, "embedding_size": 16},
    }.get(family, {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 24})
    if family == "electra":  # an embedding as wide as the stream is narrowed with it
        config = ElectraConfig(**{**config.to_dict(), "embedding_size": 32})
    small = type(config)(**{**config.to_dict(), **narrow})
    network = AutoModel.from_config(small, **({"add_pooling_layer": False} if family == "roberta" else {}))
    found = estimated(tmp_path, config, kind="from_teacher", hidden_size=16, intermediate_size=24)
    assert found.found["parameters"]["student"] == sum(weight.numel() for weight in network.parameters())


def test_heads_over_tokens_need_no_pooler(tmp_path: Path) -> None:
    network = BertModel(CONFIGS["bert"], add_pooling_layer=False)
    found = whole(tmp_path, task=QA, student={"kind": "from_teacher"})
    assert found.found["parameters"]["teacher"] == sum(weight.numel() for weight in network.parameters())


class TestWhoTeaches:
    def test_a_student_that_teaches_itself(self, tmp_path: Path) -> None:
        teachers = [{"kind": "self", "model": "file:teacher"}]
        found = whole(tmp_path, teachers=teachers, student={"kind": "from_teacher", "layers": 1})
        assert found.found["layers"] == {"teacher": 4, "student": 1}

    def test_a_pretrained_student_that_teaches_itself(self, tmp_path: Path) -> None:
        found = whole(tmp_path, teachers=[{"kind": "self"}], student={"kind": "pretrained", "model": "file:small"})
        assert found.found["layers"] == {"teacher": 2, "student": 2}
        assert found.found["parameters"]["ratio"] == 1

    def test_recorded_answers(self, tmp_path: Path) -> None:
        teachers = [{"kind": "recorded", "logits": "z"}]
        found = whole(tmp_path, teachers=teachers, student={"kind": "pretrained", "model": "file:small"})
        assert found.found is None
        assert "recorded" in found.reason


class TestStages:
    def test_the_last_student_of_a_chain(self, tmp_path: Path) -> None:
        stages = [{"student": {"kind": "from_teacher", "layers": layers}} for layers in (3, 2)]
        assert whole(tmp_path, stages=stages).found["layers"] == {"teacher": 4, "student": 2}

    @pytest.mark.parametrize(("teacher", "problems"), [("previous", ["/stages/1/student/layers"]), ("original", [])])
    def test_each_is_cut_from_the_one_before(self, tmp_path: Path, teacher: str, problems: list[str]) -> None:
        stages = [
            {"student": {"kind": "from_teacher", "layers": 2}},
            {"student": {"kind": "from_teacher", "layers": 3}, "teacher": teacher},
        ]
        assert [problem.pointer for problem in whole(tmp_path, stages=stages).problems] == problems


class TestLayersOfObjectives:
    HARD: ClassVar[dict[str, str]] = {"kind": "hard_labels"}

    @pytest.mark.parametrize(
        ("objective", "inside"),
        [
            ({"kind": "hidden_states", "layers": [[0, 0], [2, 4]]}, None),
            ({"kind": "hidden_states", "layers": [[0, 0], [3, 4]]}, "layers/1/0"),
            ({"kind": "attention_transfer", "layers": [[1, 4]]}, "layers/0/1"),
            ({"kind": "attention_scores", "layers": [[2, 3]]}, "layers/0/0"),
            ({"kind": "relations", "teacher_layer": 4}, "teacher_layer"),
            ({"kind": "relations", "student_layer": 1, "teacher_layer": 3}, None),
        ],
    )
    def test_they_must_be_there(self, tmp_path: Path, objective: dict[str, Any], inside: str | None) -> None:
        student = {"kind": "from_teacher", "layers": 2}
        found = whole(tmp_path, student=student, objectives=[self.HARD, objective])
        assert [problem.pointer for problem in found.problems] == ([f"/objectives/1/{inside}"] if inside else [])
        assert all(problem.code == "impossible_layers" for problem in found.problems)

    def test_in_a_phase_of_a_stage(self, tmp_path: Path) -> None:
        relations = {"kind": "relations", "student_layer": 2}
        phases = [{"objectives": [relations]}, {"objectives": [self.HARD]}]
        stages = [{"student": {"kind": "from_teacher", "layers": 2}, "phases": phases}]
        (problem,) = whole(tmp_path, stages=stages).problems
        assert problem.pointer == "/stages/0/phases/0/objectives/0/student_layer"

    def test_of_a_preset(self, tmp_path: Path) -> None:
        method = {"preset": "minilm", "teacher_layer": 7}
        (problem,) = whole(tmp_path, student={"kind": "from_teacher", "layers": 2}, method=method).problems
        assert problem.pointer == "/method"
