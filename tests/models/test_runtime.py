"""A student as it is loaded to serve, against transformers and against the ways in which a folder can be wrong."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from models.errors import ArtifactDamaged, Invalid
from models.runtime import Parameters, Runtime
from tests.factories import LABELS, tiny_network, tiny_rows, tiny_tokenizer
from worker import export

TEXTS = tiny_rows(40)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    network = tiny_network()
    tokenizer = BertTokenizer(tokenizer_object=tiny_tokenizer())
    export.write_student(folder, network, tokenizer, task="text-classification", labels=LABELS, max_length=16)
    export.to_onnx(network, folder, max_length=16)
    export.quantize(folder)
    export.write_golden(folder, TEXTS)
    return folder


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
        assert runtime.max_length == 16
        assert runtime.precision == "fp32"
        assert runtime.bytes == (made / "student.onnx").stat().st_size

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


class TestLogits:
    def test_they_are_those_of_the_network(self, runtime: Runtime) -> None:
        encodings = runtime.tokenize(TEXTS)
        network = tiny_network()
        with torch.inference_mode():
            expected = [network(torch.tensor([encoding.ids])).logits[0].numpy() for encoding in encodings]
        assert runtime.logits(encodings).dtype == np.float32
        np.testing.assert_allclose(runtime.logits(encodings), expected, atol=1e-5)

    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_a_texts_answer_does_not_depend_on_its_neighbours(self, made: Path, precision: str) -> None:
        runtime = Runtime.open(made, precision=precision)
        together = runtime.logits(runtime.tokenize(TEXTS))
        alone = np.concatenate([runtime.logits(runtime.tokenize([text])) for text in TEXTS])
        np.testing.assert_array_equal(together, alone)

    def test_long_texts_are_cut(self, runtime: Runtime) -> None:
        (encoding,) = runtime.tokenize(["good " * 500])
        assert len(encoding.ids) == 16
        assert runtime.logits([encoding]).shape == (1, 3)

    @pytest.mark.parametrize("text", ["", " ", "\x00", "😀" * 50, "\ud7ff", "ا ب", "a" * 10_000])
    def test_any_text_has_an_answer(self, runtime: Runtime, text: str) -> None:
        (answer,) = runtime.predict([text])
        assert {label["label"] for label in answer} == set(LABELS)

    def test_nothing_in_nothing_out(self, runtime: Runtime) -> None:
        assert runtime.predict([]) == []
        assert runtime.logits([]).shape == (0, 3)

    def test_several_threads_share_one_session(self, runtime: Runtime) -> None:
        expected = runtime.logits(runtime.tokenize(TEXTS))
        found: list[np.ndarray[Any, Any]] = []

        def work() -> None:
            found.extend(runtime.logits(runtime.tokenize(TEXTS)) for _ in range(5))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 20
        for logits in found:
            np.testing.assert_array_equal(logits, expected)


class TestDecode:
    LOGITS = np.array([[0.0, 2.0, 1.0], [5.0, 5.0, -1000.0]], np.float32)

    def test_best_first_and_equal_ones_in_the_labels_order(self, runtime: Runtime) -> None:
        first, second = runtime.decode(self.LOGITS)
        assert [label["label"] for label in first] == ["neutral", "positive", "negative"]
        assert [label["label"] for label in second] == ["negative", "neutral", "positive"]
        assert sum(label["score"] for label in first) == pytest.approx(1)
        assert second[0]["score"] == pytest.approx(0.5)

    def test_top_k(self, runtime: Runtime) -> None:
        assert [len(row) for row in runtime.decode(self.LOGITS, Parameters(top_k=2))] == [2, 2]
        assert [len(row) for row in runtime.decode(self.LOGITS, Parameters(top_k=99))] == [3, 3]

    def test_functions(self, runtime: Runtime) -> None:
        raw, _ = runtime.decode(self.LOGITS, Parameters(function_to_apply="none"))
        assert [label["score"] for label in raw] == [2.0, 1.0, 0.0]
        sigmoid, extreme = runtime.decode(self.LOGITS, Parameters(function_to_apply="sigmoid"))
        assert sigmoid[2] == {"label": "negative", "score": 0.5}
        assert extreme[2]["score"] == 0.0

    def test_scores_are_json(self, runtime: Runtime) -> None:
        assert json.loads(json.dumps(runtime.predict(TEXTS[:2], top_k=1)))

    @pytest.mark.parametrize(
        ("document", "code", "pointer"),
        [
            ({"truncation": True}, "unknown_parameter", "/parameters/truncation"),
            ({"aggregation_strategy": "simple"}, "unknown_parameter", "/parameters/aggregation_strategy"),
            ({"a/b~": 1}, "unknown_parameter", "/parameters/a~1b~0"),
            ({"top_k": 0}, "invalid_parameter", "/parameters/top_k"),
            ({"top_k": True}, "invalid_parameter", "/parameters/top_k"),
            ({"top_k": "2"}, "invalid_parameter", "/parameters/top_k"),
            ({"function_to_apply": "relu"}, "invalid_parameter", "/parameters/function_to_apply"),
        ],
    )
    def test_other_parameters_are_refused(self, document: dict[str, Any], code: str, pointer: str) -> None:
        with pytest.raises(Invalid) as caught:
            Parameters.parse(document)
        assert caught.value.code == code
        assert [problem.pointer for problem in caught.value.problems] == [pointer]

    def test_no_parameters(self) -> None:
        assert Parameters.parse(None) == Parameters.parse({}) == Parameters.parse({"top_k": None})

    def test_predict_refuses_them_too(self, runtime: Runtime) -> None:
        with pytest.raises(Invalid):
            runtime.predict(["a"], top_k=-1)


class TestGolden:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_a_sound_student_passes(self, made: Path, precision: str) -> None:
        Runtime.open(made, precision=precision).check_golden()

    def test_other_weights_do_not(self, student: Path) -> None:
        export.to_onnx(tiny_network(seed=1), student, max_length=16)
        with pytest.raises(ArtifactDamaged, match="golden inputs"):
            Runtime.open(student).check_golden()

    def test_other_labels_do_not(self, student: Path) -> None:
        config = json.loads((student / "config.json").read_text("utf-8"))
        config["id2label"] = {"0": "positive", "1": "negative", "2": "neutral"}
        (student / "config.json").write_text(json.dumps(config), "utf-8")
        with pytest.raises(ArtifactDamaged, match="golden inputs"):
            Runtime.open(student).check_golden()

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"examples": [{"input": "a"}]}', '{"examples": 3}'])
    def test_an_unreadable_record_does_not(self, student: Path, content: str) -> None:
        (student / "golden.json").write_text(content, "utf-8")
        with pytest.raises(ArtifactDamaged):
            Runtime.open(student).check_golden()
