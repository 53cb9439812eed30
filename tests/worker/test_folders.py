"""`worker.folders`: reading a network from a folder, the head that a task needs, and identity."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from models import specs
from models.errors import JobFailure
from tests.factories import LABELS, tiny_network, tiny_teacher
from worker import folders


class TestFingerprint:
    def test_of_a_folder(self, tmp_path):
        one, same, other = (
            folders.fingerprint(tiny_teacher(tmp_path / str(i), seed=s)) for i, s in enumerate((0, 0, 1))
        )
        assert one == same != other

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_every_part_counts(self, tmp_path, name):
        folder = tiny_teacher(tmp_path)
        before = folders.fingerprint(folder)
        (folder / "README.md").write_text("not a part")
        assert folders.fingerprint(folder) == before
        with (folder / name).open("ab") as file:
            file.write(b" ")
        assert folders.fingerprint(folder) != before

    def test_of_a_network_in_memory(self, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher(tmp_path))
        before = folders.fingerprint_of(tiny_network(), tokenizer)
        assert before == folders.fingerprint_of(tiny_network(), tokenizer)
        changed = tiny_network()
        with torch.no_grad():
            changed.classifier.bias[0] += 1e-7
        assert folders.fingerprint_of(changed, tokenizer) != before
        assert folders.fingerprint_of(tiny_network(LABELS[::-1]), tokenizer) != before


class TestLabelOrder:
    @pytest.mark.parametrize(
        ("own", "labels", "order"),
        [
            (["b", "a"], ["a", "b"], [1, 0]),
            (["NEGATIVE", "POSITIVE"], ["negative", "positive"], [0, 1]),
            (["a", "A"], ["A", "a"], [1, 0]),
            (["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"], [0, 1, 2]),
            (["LABEL_0", "LABEL_1"], ["1", "2"], None),
            (["LABEL_0", "LABEL_1"], ["negative", "positive"], None),
            (["a", "b"], ["a", "b", "c"], None),
            (["a", "a"], ["a", "b"], None),
        ],
    )
    def test_by_name(self, own, labels, order):
        assert folders.label_order(own, labels) == order


class TestOpenFolder:
    def test_reads_only_what_is_safe(self, tmp_path):
        folder = tiny_teacher(tmp_path)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(JobFailure) as caught:
            folders.open_folder(folder, LABELS, head="one_label", seed=0, pointer="/teachers/0/model")
        assert (caught.value.code, caught.value.pointer) == ("unsafe_weights", "/teachers/0/model")

    def test_leaves_the_random_state_and_repeats(self, tmp_path):
        folder = tiny_teacher(tmp_path, labels=None)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        one, same, other = (
            folders.open_folder(folder, LABELS, head="one_label", seed=seed, pointer="").network for seed in (0, 0, 1)
        )
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(one.classifier.weight, same.classifier.weight)
        assert torch.equal(one.bert.pooler.dense.weight, same.bert.pooler.dense.weight)
        assert not torch.equal(one.classifier.weight, other.classifier.weight)

    def test_a_byte_level_tokenizer_reads_words_alike_wherever_they_stand(self, tmp_path):
        folder = tiny_teacher(tmp_path)
        alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "Ġa", "Ġb"]
        model = models.BPE({token: place for place, token in enumerate(["[PAD]", *alphabet])}, [("Ġ", "a"), ("Ġ", "b")])
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False)])
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
        for head, tokens in (("one_label", ["a", "b"]), ("tags", ["Ġa", "Ġb"])):
            opened = folders.open_folder(folder, LABELS, head=head, seed=0, pointer="").tokenizer
            assert opened.backend_tokenizer.encode(["a", "b"], is_pretokenized=True).tokens == tokens
            opened.save_pretrained(tmp_path / head)
            saved = Tokenizer.from_file(str(tmp_path / head / "tokenizer.json"))
            assert saved.encode(["a", "b"], is_pretokenized=True).tokens == tokens


class TestHeadOf:
    @pytest.mark.parametrize(
        ("task", "head"),
        [
            ({"kind": "text-classification", "text": "t", "label": "l"}, "one_label"),
            ({"kind": "text-classification", "text": "t", "label": "l", "multi_label": True}, "labels"),
            ({"kind": "text-regression", "text": "t", "target": "l"}, "number"),
            ({"kind": "token-classification", "tokens": "t", "tags": "l"}, "tags"),
            ({"kind": "question-answering", "question": "q", "context": "c", "answers": "a"}, "span"),
        ],
    )
    def test_every_task(self, task, head):
        document = {
            "task": task,
            "dataset": {"id": "ds_1"},
            "teachers": [{"kind": "local", "model": "file:t"}],
            "student": {"kind": "from_teacher", "layers": 1},
        }
        if head == "number":
            document["objectives"] = [{"kind": "hard_labels"}]
        assert folders.head_of(specs.parse_job(document).task) == head
