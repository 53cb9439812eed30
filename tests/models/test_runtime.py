"""A student as it is loaded to serve, against transformers and against the ways in which a folder can be wrong."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.answers import Kind, Parameters, labels_of
from models.errors import ArtifactDamaged, Invalid
from models.inputs import Input, Pair, Question, Words
from models.runtime import Runtime
from tests.factories import LABELS, tiny_network, tiny_rows
from tests.students import INPUTS, TAGS, tiny_student
from worker import export

TEXTS = tiny_rows(40)[0]
KINDS: tuple[Kind, ...] = ("text-classification", "text-regression", "token-classification", "question-answering")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    tiny_student(folder, max_length=16)
    export.quantize(folder)
    export.write_golden(folder, TEXTS)
    return folder


@pytest.fixture(scope="module")
def folders(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """A student of each kind of task."""
    root = tmp_path_factory.mktemp("kinds")
    return {
        "text-classification": made,
        **{kind: tiny_student(root / kind, kind, max_length=24) for kind in KINDS[1:]},
    }


@pytest.fixture(scope="module")
def runtimes(folders: dict[Kind, Path]) -> dict[Kind, Runtime]:
    return {kind: Runtime.open(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def words(runtimes: dict[Kind, Runtime]) -> Runtime:
    return runtimes["token-classification"]


@pytest.fixture(scope="module")
def spans(runtimes: dict[Kind, Runtime]) -> Runtime:
    return runtimes["question-answering"]


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "student"))


@pytest.fixture(scope="module")
def runtime(made: Path) -> Runtime:
    return Runtime.open(made)


class TestOpen:
    def test_it_reads_the_folder(self, runtime: Runtime, made: Path) -> None:
        assert runtime.labels == LABELS
        assert runtime.kind == "text-classification"
        assert not runtime.multi_label
        assert runtime.max_length == 16
        assert runtime.precision == "fp32"
        assert runtime.bytes == (made / "student.onnx").stat().st_size

    def test_the_kind_of_task(self, runtimes: dict[Kind, Runtime]) -> None:
        assert {kind: runtime.kind for kind, runtime in runtimes.items()} == {kind: kind for kind in KINDS}
        assert [runtime.labels for runtime in runtimes.values()] == [LABELS, ("target",), TAGS, ()]

    def test_any_number_of_labels(self, student: Path) -> None:
        change(student / "config.json", problem_type="multi_label_classification")
        runtime = Runtime.open(student)
        assert runtime.multi_label
        labels: Any = runtime.predict(["a good day"])[0]
        raw = runtime.answers(["a good day"])[0][0][0]
        assert {label["label"]: label["score"] for label in labels} == pytest.approx(
            dict(zip(LABELS, 1 / (1 + np.exp(-raw.astype(float))), strict=True))
        )

    @pytest.mark.parametrize("architectures", [None, [], ["BertModel"], [3], "BertForTokenClassification"])
    def test_a_network_without_a_task_is_refused(self, student: Path, architectures: object) -> None:
        change(student / "config.json", architectures=architectures)
        with pytest.raises(ArtifactDamaged, match="no architecture"):
            Runtime.open(student)

    def test_a_network_of_another_task_is_refused(self, student: Path) -> None:
        change(student / "config.json", architectures=["BertForQuestionAnswering"])
        with pytest.raises(ArtifactDamaged, match="not one for question-answering"):
            Runtime.open(student)

    def test_the_manifest_says_which_precision_is_served(self, student: Path) -> None:
        (student / "manifest.json").write_text(json.dumps({"precision": "int8"}), "utf-8")
        assert Runtime.open(student).precision == "int8"
        assert Runtime.open(student, precision="fp32").precision == "fp32"

    @pytest.mark.parametrize(
        "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "student.onnx", "manifest.json"]
    )
    @pytest.mark.parametrize("content", [b"", b"[]", b'{"half": '])
    def test_a_damaged_file_is_refused(self, student: Path, name: str, content: bytes) -> None:
        (student / name).write_bytes(content)
        with pytest.raises(ArtifactDamaged):
            Runtime.open(student)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "student.onnx"])
    def test_an_absent_file_is_refused(self, student: Path, name: str) -> None:
        (student / name).unlink()
        with pytest.raises(ArtifactDamaged):
            Runtime.open(student)

    def test_a_truncated_network_is_refused(self, student: Path) -> None:
        path = student / "student.onnx"
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ArtifactDamaged):
            Runtime.open(student)

    @pytest.mark.parametrize("precision", ["fp16", "../student", 3, None])
    def test_an_unknown_precision_is_refused(self, student: Path, precision: object) -> None:
        (student / "manifest.json").write_text(json.dumps({"precision": precision}), "utf-8")
        with pytest.raises(ArtifactDamaged):
            Runtime.open(student)


class TestAnswers:
    def test_of_a_text_they_are_those_of_the_network(self, runtime: Runtime) -> None:
        network = tiny_network()
        encodings = runtime.tokenize(TEXTS)
        with torch.inference_mode():
            expected = [network(torch.tensor([windows[0].ids])).logits.numpy() for windows in encodings]
        found = runtime.answers(TEXTS, encodings)
        assert found[0][0].dtype == np.float32
        np.testing.assert_allclose([windows[0] for windows in found], expected, atol=1e-5)

    def test_of_words_there_is_one_place_each(self, words: Runtime) -> None:
        item = Words(("goods", "", "day", *["so"] * 40))
        [[found]] = words.answers([item])
        assert found.shape == (43, len(TAGS))
        # The first token of each word; nothing for a word without tokens, or behind the 24th token.
        assert np.isnan(found).any(axis=1).tolist() == [False, True, *[False] * 20, *[True] * 21]
        [[alone]] = words.answers(["goods day " + "so " * 40])
        np.testing.assert_array_equal(found[[0, 2, 3]], alone[[0, 2, 3]])

    def test_of_a_question_there_is_an_array_for_each_window(self, spans: Runtime) -> None:
        item = Question("was it good", " ".join(TEXTS[:4]))
        [windows] = spans.tokenize([item])
        [found] = spans.answers([item], [windows])
        assert len(found) == len(windows) > 2
        assert [part.shape for part in found] == [(len(one.ids) - 5, 2) for one in windows]

    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_a_texts_answer_does_not_depend_on_its_neighbours(self, made: Path, precision: str) -> None:
        runtime = Runtime.open(made, precision=precision)
        alone = [runtime.answers([text])[0] for text in TEXTS]
        np.testing.assert_array_equal(runtime.answers(TEXTS), alone)

    def test_long_texts_are_cut(self, runtime: Runtime) -> None:
        [[encoding]] = runtime.tokenize(["good " * 500])
        assert len(encoding.ids) == 16

    @pytest.mark.parametrize("text", ["", " ", "\x00", "😀" * 50, "\ud7ff", "ا ب", "a" * 10_000])
    def test_any_text_has_an_answer(self, runtimes: dict[Kind, Runtime], text: str) -> None:
        labels: Any = runtimes["text-classification"].predict([text])[0]
        assert {label["label"] for label in labels} == set(LABELS)
        entities: Any = runtimes["token-classification"].predict([text])[0]
        assert all(entity["word"] == text[entity["start"] : entity["end"]] for entity in entities)
        span: Any = runtimes["question-answering"].predict([Question(text, text)])[0]
        assert span["answer"] == text[span["start"] : span["end"]]

    def test_nothing_in_nothing_out(self, runtimes: dict[Kind, Runtime]) -> None:
        for runtime in runtimes.values():
            assert runtime.predict([]) == []
            assert runtime.answers([]) == []
            assert runtime.tokenize([]) == []

    @pytest.mark.parametrize("kind", KINDS)
    def test_several_threads_share_one_session(self, runtimes: dict[Kind, Runtime], kind: Kind) -> None:
        runtime = runtimes[kind]
        # Questions of many lengths set the tokenizer up in many ways.
        inputs: list[Input] = [
            *INPUTS[kind],
            *(Question("good " * at, " ".join(TEXTS[:3])) for at in range(10) if kind == "question-answering"),
        ]
        expected = runtime.predict(inputs)
        found: list[Any] = []

        def work() -> None:
            found.append([runtime.predict([item])[0] for item in inputs])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 4


class TestTexts:
    LOGITS = np.array([0.0, 2.0, 1.0], np.float32)

    def test_best_first_and_equal_ones_in_the_labels_order(self) -> None:
        found = labels_of(self.LOGITS, LABELS, "softmax")
        assert [label["label"] for label in found] == ["neutral", "positive", "negative"]
        assert sum(label["score"] for label in found) == pytest.approx(1)
        equal = labels_of(np.array([5.0, 5.0, -1000.0], np.float32), LABELS, "softmax")
        assert [label["label"] for label in equal] == ["negative", "neutral", "positive"]
        assert equal[0]["score"] == pytest.approx(0.5)

    def test_top_k(self, runtime: Runtime) -> None:
        assert [len(labels) for labels in runtime.predict(TEXTS[:2], top_k=2)] == [2, 2]
        assert [len(labels) for labels in runtime.predict(TEXTS[:2], top_k=99)] == [3, 3]

    def test_functions(self) -> None:
        assert [label["score"] for label in labels_of(self.LOGITS, LABELS, "none")] == [2.0, 1.0, 0.0]
        assert labels_of(self.LOGITS, LABELS, "sigmoid")[2] == {"label": "negative", "score": 0.5}
        assert labels_of(np.array([-1000.0], np.float32), ["a"], "sigmoid") == [{"label": "a", "score": 0.0}]

    def test_a_number_is_as_the_network_gives_it(self, runtimes: dict[Kind, Runtime]) -> None:
        runtime = runtimes["text-regression"]
        pair = Pair("a good day", "a bad one")
        [[label]] = runtime.predict([pair])
        raw = runtime.answers([pair])[0][0]
        assert label == {"label": "target", "score": pytest.approx(float(raw[0, 0]))}


class TestWords:
    TEXT = "Goods on monday, so lovely"

    def raw(self, words: Runtime, **tags: str) -> Any:
        """The encoding of the text, and logits that give the tag `tags` of each token, else O."""
        [[encoding]] = words.tokenize([self.TEXT])
        asked = [token for token in encoding.tokens if not token.startswith("[")]
        logits = np.zeros((len(asked), len(TAGS)), np.float32)
        for row, token in enumerate(asked):
            logits[row, TAGS.index(tags.get(token.replace("##", "_"), "O"))] = 9
        return encoding, logits

    def entities(self, words: Runtime, strategy: Any = None, **tags: str) -> Any:
        encoding, logits = self.raw(words, **tags)
        return words.decode(self.TEXT, [encoding], [logits], Parameters(aggregation_strategy=strategy))

    def test_a_word_is_what_its_first_token_says(self, words: Runtime) -> None:
        [found] = self.entities(words, good="B-place")
        assert found == {"entity_group": "place", "score": found["score"], "word": "Goods", "start": 0, "end": 5}
        assert self.entities(words, "first", good="B-place") == [found]
        assert self.entities(words, _s="B-place") == []

    def test_neighbours_are_one_entity(self, words: Runtime) -> None:
        found = self.entities(words, good="B-person", o="I-person", lovely="B-place")
        assert [(one["entity_group"], one["word"]) for one in found] == [("person", "Goods on"), ("place", "lovely")]

    def test_tokens(self, words: Runtime) -> None:
        found = self.entities(words, "none", good="B-person", _s="I-person")
        assert [(one["entity"], one["index"], one["word"], one["start"], one["end"]) for one in found] == [
            ("B-person", 1, "good", 0, 4),
            ("I-person", 2, "##s", 4, 5),
        ]

    def test_average_and_max_ask_all_tokens(self, words: Runtime) -> None:
        encoding, logits = self.raw(words)
        logits[0] = [2, 1, 0, 0, 0]  # the first piece: O
        logits[1] = [0, 9, 0, 0, 0]  # the second: person, and surer
        for strategy, expected in (("simple", []), ("average", ["Goods"]), ("max", ["Goods"])):
            chosen = Parameters.parse({"aggregation_strategy": strategy})
            found: Any = words.decode(self.TEXT, [encoding], [logits], chosen)
            assert [one["word"] for one in found] == expected

    def test_a_row_of_words_answers_like_its_text(self, words: Runtime) -> None:
        for text in TEXTS[:10]:
            item = Words(tuple(text.split()))
            assert words.predict([item]) == words.predict([text])


class TestQuestions:
    CONTEXT = "Our train was lovely, and the food was great. " + " ".join(TEXTS[:3])

    def test_the_place_with_the_best_logits(self, spans: Runtime) -> None:
        item = Question("was it good", self.CONTEXT)
        [windows] = spans.tokenize([item])
        raw = [np.zeros_like(part) for part in spans.answers([item], [windows])[0]]
        raw[0][2, 0] = raw[0][4, 1] = 20  # the second to the fourth token of the context
        best = spans.decode(item, windows, raw)
        assert best == {"answer": "train was lovely", "score": pytest.approx(1, abs=1e-3), "start": 4, "end": 20}
        several = spans.decode(item, windows, raw, Parameters(top_k=2))
        assert isinstance(several, list)
        assert several[0] == best
        assert len(several) == 2

    def test_no_answer_where_the_task_has_it(self, folders: dict[Kind, Path], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(folders["question-answering"], tmp_path / "student"))
        item = Question("was it good", self.CONTEXT)

        def decoded() -> Any:
            runtime = Runtime.open(folder)
            [windows] = runtime.tokenize([item])
            raw = [np.zeros_like(part) for part in runtime.answers([item], [windows])[0]]
            for part in raw:
                part[0] = 20
            return runtime.decode(item, windows, raw)

        assert decoded()["answer"] != ""
        change(folder / "config.json", limbeck_allow_none=True)
        assert decoded() == {"answer": "", "score": pytest.approx(1, abs=1e-3), "start": 0, "end": 0}

    def test_the_stride_is_the_students(self, folders: dict[Kind, Path], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(folders["question-answering"], tmp_path / "student"))
        counts = []
        for stride in (0, 8):
            change(folder / "config.json", limbeck_stride=stride)
            counts.append(len(Runtime.open(folder).tokenize([Question("was it", self.CONTEXT * 3)])[0]))
        assert counts[0] < counts[1]


class TestParameters:
    @pytest.mark.parametrize(
        ("document", "code", "pointer"),
        [
            ({"truncation": True}, "unknown_parameter", "/parameters/truncation"),
            ({"a/b~": 1}, "unknown_parameter", "/parameters/a~1b~0"),
            ({"top_k": 0}, "invalid_parameter", "/parameters/top_k"),
            ({"top_k": True}, "invalid_parameter", "/parameters/top_k"),
            ({"top_k": "2"}, "invalid_parameter", "/parameters/top_k"),
            ({"function_to_apply": "relu"}, "invalid_parameter", "/parameters/function_to_apply"),
            ({"aggregation_strategy": "last"}, "invalid_parameter", "/parameters/aggregation_strategy"),
        ],
    )
    def test_others_are_refused(self, document: dict[str, Any], code: str, pointer: str) -> None:
        with pytest.raises(Invalid) as caught:
            Parameters.parse(document)
        assert caught.value.code == code
        assert [problem.pointer for problem in caught.value.problems] == [pointer]

    def test_none(self) -> None:
        assert Parameters.parse(None) == Parameters.parse({}) == Parameters.parse({"top_k": None})

    @pytest.mark.parametrize(
        ("kind", "has"),
        [
            ("text-classification", {"top_k", "function_to_apply"}),
            ("text-regression", set()),
            ("token-classification", {"aggregation_strategy"}),
            ("question-answering", {"top_k"}),
        ],
    )
    def test_each_task_has_its_own(self, runtimes: dict[Kind, Runtime], kind: Kind, has: set[str]) -> None:
        chosen = Parameters(top_k=1, function_to_apply="none", aggregation_strategy="first")
        with pytest.raises(Invalid) as caught:
            runtimes[kind].check([], chosen)
        refused = {problem.pointer.rpartition("/")[2] for problem in caught.value.problems}
        assert refused == set(Parameters.model_fields) - has
        assert {problem.code for problem in caught.value.problems} == {"unknown_parameter"}
        assert all(name in caught.value.problems[0].message for name in has)
        runtimes[kind].check([], Parameters())

    def test_predict_refuses_them_too(self, runtime: Runtime) -> None:
        with pytest.raises(Invalid):
            runtime.predict(["a"], top_k=-1)


class TestInputs:
    ANY: tuple[Input, ...] = ("a", Pair("a", "b"), Words(("a", "b")), Question("a", "b"))

    @pytest.mark.parametrize(
        ("kind", "takes"),
        [
            ("text-classification", (str, Pair)),
            ("text-regression", (str, Pair)),
            ("token-classification", (str, Words)),
            ("question-answering", (Question,)),
        ],
    )
    def test_a_student_takes_those_of_its_task(
        self, runtimes: dict[Kind, Runtime], kind: Kind, takes: tuple[type, ...]
    ) -> None:
        for item in self.ANY:
            if isinstance(item, takes):
                assert runtimes[kind].predict([item])
            else:
                with pytest.raises(Invalid) as caught:
                    runtimes[kind].predict([item])
                assert caught.value.code == "wrong_input"
                assert caught.value.problems[0].pointer == "/inputs/0"

    @pytest.mark.parametrize(("pair", "takes"), [(True, Pair), (False, str)])
    def test_a_student_that_says_so_takes_pairs_or_single_texts(self, student: Path, pair: bool, takes: type) -> None:
        change(student / "config.json", limbeck_pair=pair)
        runtime = Runtime.open(student)
        for item in self.ANY[:2]:
            if isinstance(item, takes):
                runtime.check([item], Parameters())
            else:
                with pytest.raises(Invalid, match="pairs" if pair else "single texts"):
                    runtime.check([item], Parameters(), single=True)


class TestGolden:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_a_sound_student_passes(self, made: Path, precision: str) -> None:
        Runtime.open(made, precision=precision).check_golden()

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_task(self, folders: dict[Kind, Path], kind: Kind, tmp_path: Path) -> None:
        Runtime.open(folders[kind]).check_golden()
        folder = Path(shutil.copytree(folders[kind], tmp_path / "student"))
        document = json.loads((folder / "golden.json").read_text("utf-8"))
        assert len(document["examples"]) == 8
        document["examples"][-1]["answers"]["fp32"][-1][-1][-1] += 0.1
        (folder / "golden.json").write_text(json.dumps(document), "utf-8")
        with pytest.raises(ArtifactDamaged, match="golden inputs"):
            Runtime.open(folder).check_golden()

    @pytest.mark.parametrize(("change_by", "sound"), [(0.0, True), (0.1, False)])
    def test_the_record_of_an_older_student(self, student: Path, change_by: float, sound: bool) -> None:
        runtime = Runtime.open(student)
        examples = [
            {
                "input": text,
                "logits": {"fp32": (windows[0][0] + change_by).tolist()},
                "label": {"fp32": LABELS[windows[0][0].argmax()]},
            }
            for text, windows in zip(TEXTS[:4], runtime.answers(TEXTS[:4]), strict=True)
        ]
        (student / "golden.json").write_text(json.dumps({"format": 1, "examples": examples}), "utf-8")
        if sound:
            runtime.check_golden()
            change(student / "config.json", id2label={"0": "positive", "1": "negative", "2": "neutral"})
            runtime = Runtime.open(student)
        with pytest.raises(ArtifactDamaged, match="golden inputs"):
            runtime.check_golden()

    def test_the_record_of_another_task(self, folders: dict[Kind, Path], student: Path) -> None:
        shutil.copy(folders["question-answering"] / "golden.json", student / "golden.json")
        with pytest.raises(ArtifactDamaged):
            Runtime.open(student).check_golden()

    def test_other_weights_do_not(self, student: Path) -> None:
        export.to_onnx(tiny_network(seed=1), student, max_length=16)
        with pytest.raises(ArtifactDamaged, match="golden inputs"):
            Runtime.open(student).check_golden()

    def test_other_labels_do_not(self, student: Path) -> None:
        change(student / "config.json", id2label={"0": "positive", "1": "negative", "2": "neutral"})
        with pytest.raises(ArtifactDamaged, match="golden inputs"):
            Runtime.open(student).check_golden()

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"examples": [{"input": "a"}]}', '{"examples": 3}'])
    def test_an_unreadable_record_does_not(self, student: Path, content: str) -> None:
        (student / "golden.json").write_text(content, "utf-8")
        with pytest.raises(ArtifactDamaged):
            Runtime.open(student).check_golden()


def change(path: Path, **values: Any) -> None:
    """Set `values` in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")
