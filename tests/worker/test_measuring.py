"""Answers and latencies by the runtime that serves, and which precision that is."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from transformers import BertTokenizer

from models.errors import ArtifactDamaged
from models.runtime import Runtime
from models.specs import TextClassification, TextRegression
from tests.factories import LABELS, tiny_network, tiny_rows, tiny_tokenizer
from worker import export, measuring
from worker.data import Answers, Encoded
from worker.measuring import Choice, Latency, Measured, choose_precision
from worker.tasks import for_task
from worker.tasks.base import Split, TaskKind

INPUTS: list[Any] = list(tiny_rows(50)[0])
TASK = TextClassification(kind="text-classification", text="text", label="label", max_length=24)
TEXTS = for_task(TASK)
NUMBERS = for_task(TextRegression(kind="text-regression", text="text", target="target"))


def measured(kind: TaskKind, logits: Any, p50: float = 1.0) -> Measured:
    """Raw `logits` (N, C) of whole inputs, at the given speed."""
    values = np.asarray(logits, np.float32)
    encoded = Encoded([np.zeros(1, np.int32)] * len(values), np.ones(len(values), np.int64), 0)
    latency = Latency(p50, 2 * p50, 3 * p50, 1000 / p50)
    return Measured.of(kind, Answers.whole(values), encoded, ["a text"] * len(values), bytes=100, latency=latency)


def labelled(predictions: list[int], p50: float = 1.0) -> Measured:
    return measured(TEXTS, 3 * np.eye(3)[predictions], p50)


def rows_of(truth: Any) -> Split:
    """Validation rows of which `truth` is true."""
    return Split(["a text"] * len(truth), np.asarray(truth), np.ones(len(truth), np.bool_))


class TestChoosePrecision:
    SAME = [0, 1, 2] * 100
    ROWS = rows_of(SAME)

    def test_int8_is_served_where_it_agrees_and_is_faster(self) -> None:
        both: Any = {"fp32": labelled(self.SAME, 2.0), "int8-dynamic": labelled(self.SAME, 1.0)}
        choice = choose_precision("auto", TEXTS, self.ROWS, both)
        assert (choice.served, choice.int8) == ("int8", "int8-dynamic")
        assert "100.0 % of the validation rows" in choice.reason
        assert "1.00 ms against 2.00 ms" in choice.reason
        assert choice.candidates["fp32"] == {"score": 1.0, "bytes": 100, "p50_ms": 2.0, "refused": None}
        assert choice.candidates["int8-dynamic"]["agreement_with_fp32"] == 1.0
        assert choice.candidates["int8-dynamic"]["loss"]["value"] == 0
        json.dumps(asdict(choice), allow_nan=False)

    @pytest.mark.parametrize(("wrong", "served"), [(4, "int8"), (5, "fp32")])
    def test_agreement_is_asked_for_exactly(self, wrong: int, served: str) -> None:
        # Rows on which both are wrong, in different ways: agreement falls and accuracy does not.
        rows = rows_of([(label + 2) % 3 for label in self.SAME[:wrong]] + self.SAME[wrong:])
        other = [(label + 1) % 3 for label in self.SAME[:wrong]] + self.SAME[wrong:]
        choice = choose_precision(
            "auto", TEXTS, rows, {"fp32": labelled(self.SAME, 2.0), "int8-dynamic": labelled(other, 1.0)}
        )
        assert choice.served == served
        assert f"{100 * (1 - wrong / 300):.1f} %" in choice.reason
        assert choice.int8 == "int8-dynamic"

    def test_a_significant_loss_is_not_served_however_well_it_agrees(self) -> None:
        truth = self.SAME * 10
        other = [(label + 1) % 3 for label in truth[:30]] + truth[30:]
        choice = choose_precision(
            "auto", TEXTS, rows_of(truth), {"fp32": labelled(truth, 2.0), "int8-dynamic": labelled(other, 1.0)}
        )
        assert choice.served == "fp32"
        assert "99.0 %" in choice.reason
        assert "but loses 0.0100 accuracy (95 % interval 0.00" in choice.reason
        assert choice.candidates["int8-dynamic"]["refused"] == choice.reason

    def test_a_gain_or_a_loss_that_may_be_chance_is_served(self) -> None:
        truth = self.SAME * 10
        other = [(label + 1) % 3 for label in truth[:2]] + truth[2:]
        both = labelled(truth, 2.0), labelled(other, 1.0)
        for fp32, int8 in (both, (replace(both[1], latency=both[0].latency), labelled(truth, 1.0))):
            measured: Any = {"fp32": fp32, "int8-dynamic": int8}
            assert choose_precision("auto", TEXTS, rows_of(truth), measured).served == "int8"

    def test_a_slower_int8_is_not_served(self) -> None:
        both: Any = {"fp32": labelled(self.SAME, 1.0), "int8-dynamic": labelled(self.SAME, 1.0)}
        choice = choose_precision("auto", TEXTS, self.ROWS, both)
        assert choice.served == "fp32"
        assert "not faster" in choice.reason

    @pytest.mark.parametrize(
        ("dynamic", "static", "kept"),
        [(1.0, 0.85, "int8-static"), (1.0, 0.95, "int8-dynamic"), (3.0, 1.9, "int8-static"), (3.0, 3.0, None)],
    )
    def test_calibration_is_served_where_it_is_clearly_faster(
        self, dynamic: float, static: float, kept: str | None
    ) -> None:
        measured: Any = {
            "fp32": labelled(self.SAME, 2.0),
            "int8-dynamic": labelled(self.SAME, dynamic),
            "int8-static": labelled(self.SAME, static),
        }
        choice = choose_precision("auto", TEXTS, self.ROWS, measured)
        assert choice.served == ("fp32" if kept is None else "int8")
        assert choice.int8 == (kept or "int8-dynamic")

    def test_calibration_that_disagrees_leaves_the_other(self) -> None:
        measured: Any = {
            "fp32": labelled(self.SAME, 2.0),
            "int8-dynamic": labelled(self.SAME, 1.0),
            "int8-static": labelled([0] * 300, 0.1),
        }
        choice = choose_precision("auto", TEXTS, self.ROWS, measured)
        assert (choice.served, choice.int8) == ("int8", "int8-dynamic")
        assert "calibrated int8 agrees with fp32 on 33.3 %" in choice.candidates["int8-static"]["refused"]

    @pytest.mark.parametrize("asked", ["fp32", "int8"])
    def test_the_spec_has_the_last_word(self, asked: Any) -> None:
        both: Any = {"fp32": labelled(self.SAME, 1.0), "int8-dynamic": labelled([0] * 300, 9.0)}
        choice = choose_precision(asked, TEXTS, self.ROWS, both)
        assert choice.served == asked
        assert choice.reason.startswith(f"The job asks for {asked}.")
        assert ("By itself it would not be served: int8 agrees with fp32 on 33.3 %" in choice.reason) is (
            asked == "int8"
        )

    @pytest.mark.parametrize("asked", ["auto", "int8"])
    def test_without_int8(self, asked: Any) -> None:
        choice = choose_precision(asked, TEXTS, self.ROWS, {"fp32": labelled(self.SAME)})
        assert (choice.served, choice.int8) == ("fp32", None)
        assert choice.reason == "fp32 is served, for int8 was not measured."

    @pytest.mark.parametrize(
        ("change", "served", "words"),
        [
            (lambda numbers: numbers + 0.01 * np.cos(numbers), "int8", "correlate at 0.99"),
            (lambda numbers: numbers + 0.3 * np.cos(97 * numbers), "fp32", "a correlation of 0.999 is asked"),
            (lambda numbers: numbers + 0.5, "fp32", "at most 5 % are allowed"),
            (lambda numbers: 0 * numbers, "fp32", "all the same number"),
        ],
    )
    def test_numbers_rise_and_fall_together(self, change: Any, served: str, words: str) -> None:
        numbers = np.linspace(0, 5, 200)
        fp32, int8 = measured(NUMBERS, numbers[:, None], 2.0), measured(NUMBERS, change(numbers)[:, None], 1.0)
        rows = rows_of(numbers + np.sin(50 * numbers))
        choice = choose_precision("auto", NUMBERS, rows, {"fp32": fp32, "int8-dynamic": int8})
        assert choice.served == served
        assert words in choice.reason
        assert choice.reason.endswith(".")


class TestAnswersOf:
    ONE = np.zeros((1, 3), np.float32)

    def test_windows_follow_each_other(self) -> None:
        parts = [[np.full((2, 2), 1, np.float32), np.full((3, 2), 2, np.float32)], [np.full((1, 2), 3, np.float32)]]
        places = [np.arange(count, dtype=np.int32) for count in (2, 3, 1)]
        encoded = Encoded([np.zeros(4, np.int32)] * 3, np.full(3, 4), 0, rows=np.array([0, 0, 1]), places=places)
        answers = measuring.answers_of(parts, encoded, 2)
        assert [answers[row][0, 0] for row in range(3)] == [1, 2, 3]
        assert len(answers[1]) == 3

    def test_another_cut_is_refused(self) -> None:
        whole = Encoded([np.zeros(4, np.int32)] * 2, np.full(2, 4), 0)
        assert len(measuring.answers_of([[self.ONE], [self.ONE]], whole, 3)) == 2
        with pytest.raises(ValueError, match="other windows"):
            measuring.answers_of([[self.ONE, self.ONE], [self.ONE]], whole, 3)
        with pytest.raises(ValueError, match="other windows"):
            measuring.answers_of([[self.ONE], [np.zeros((2, 3), np.float32)]], whole, 3)

    def test_no_inputs_have_no_answers(self) -> None:
        assert measuring.answers_of([], Encoded([], np.empty(0, np.int64), 0), 3).values.shape == (0, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("student")
    network = tiny_network()
    tokenizer = BertTokenizer(tokenizer_object=tiny_tokenizer())
    export.write_student(made, network, tokenizer, task=TASK, labels=LABELS, extra=TEXTS.serving())
    export.to_onnx(network, made, max_length=24)
    export.quantize(made)
    return made


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    return TEXTS.encode(BertTokenizer(tokenizer_object=tiny_tokenizer()), INPUTS)


class TestMeasure:
    def test_each_precision_answers_and_is_timed(self, folder: Path, encoded: Encoded) -> None:
        found = measuring.measure(folder, TEXTS, encoded, INPUTS)
        assert set(found) == {"fp32", "int8"}
        for precision, one in found.items():
            runtime = Runtime.open(folder, precision=precision)
            expected = np.concatenate([windows[0] for windows in runtime.answers(INPUTS)])
            np.testing.assert_array_equal(one.answers.values, expected)
            np.testing.assert_array_equal(one.predictions, expected.argmax(axis=1))
            assert one.bytes == runtime.bytes
            assert one.latency is not None
            assert 0 < one.latency.p50_ms <= one.latency.p95_ms <= one.latency.p99_ms
            assert one.latency.texts_per_second > 0

    def test_it_tells_of_its_progress_and_can_be_stopped(self, folder: Path, encoded: Encoded) -> None:
        told: list[int] = []
        measuring.measure(folder, TEXTS, encoded, INPUTS, precisions=["fp32"], on_rows=told.append)
        assert sum(told) == len(INPUTS)

        def stop(_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measuring.measure(folder, TEXTS, encoded, INPUTS, precisions=["fp32"], on_rows=stop)

    def test_one_text_is_enough(self, folder: Path) -> None:
        assert measuring.measure_latency(Runtime.open(folder), ["good"]).p50_ms > 0

    def test_no_texts_have_no_answers(self, folder: Path) -> None:
        assert measuring.answer(Runtime.open(folder), []) == []


class TestDamagedInt8:
    """Files that were planted beside a healthy fp32 network."""

    def choose(self, folder: Path, encoded: Encoded, int8: Path, asked: Any = "auto") -> Choice:
        files: Any = {"fp32": folder / "student.onnx", "int8-dynamic": int8}
        opened, damaged = measuring.open_candidates(folder, files, INPUTS[:3])
        found = measuring.measure_all(opened, TEXTS, encoded, INPUTS)
        return choose_precision(asked, TEXTS, rows_of(found["fp32"].predictions), found, damaged)

    def test_scrambled_weights(self, folder: Path, encoded: Encoded, tmp_path: Path) -> None:
        model = onnx.load(folder / "student.int8.onnx")
        random = np.random.default_rng(0)
        for weights in model.graph.initializer:
            if weights.data_type == onnx.TensorProto.INT8:
                values = random.permutation(numpy_helper.to_array(weights).ravel()).reshape(weights.dims)
                weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        onnx.save(model, tmp_path / "scrambled.onnx")
        choice = self.choose(folder, encoded, tmp_path / "scrambled.onnx")
        assert choice.served == "fp32"
        assert choice.candidates["int8-dynamic"]["agreement_with_fp32"] < 0.9
        assert choice.reason.endswith("less than the 98.5 % that are asked of it.")

    @pytest.mark.parametrize("asked", ["auto", "int8"])
    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_half_a_file(self, folder: Path, encoded: Encoded, tmp_path: Path, asked: str, share: float) -> None:
        whole = (folder / "student.int8.onnx").read_bytes()
        (tmp_path / "half.onnx").write_bytes(whole[: int(share * len(whole))])
        choice = self.choose(folder, encoded, tmp_path / "half.onnx", asked)
        assert (choice.served, choice.int8) == ("fp32", None)
        assert choice.reason == "fp32 is served, for the int8 file of this network cannot be used."
        assert choice.candidates["int8-dynamic"] == {"refused": "The int8 file of this network cannot be used."}

    def test_one_that_answers_with_no_numbers(self, folder: Path, tmp_path: Path) -> None:
        model = onnx.load(folder / "student.int8.onnx")
        for weights in model.graph.initializer:
            if weights.data_type == onnx.TensorProto.FLOAT:
                values = np.full(tuple(weights.dims), np.nan, np.float32)
                weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        onnx.save(model, tmp_path / "nan.onnx")
        files: Any = {"fp32": folder / "student.onnx", "int8-dynamic": tmp_path / "nan.onnx"}
        opened, damaged = measuring.open_candidates(folder, files, INPUTS[:3])
        assert set(opened) == {"fp32"}
        assert damaged == {"int8-dynamic": "the int8 file of this network answers with no numbers"}

    def test_fp32_must_open(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "student.onnx").write_bytes(b"no network")
        with pytest.raises(ArtifactDamaged):
            measuring.open_candidates(folder, {"fp32": tmp_path / "student.onnx"}, INPUTS[:3])

    def test_a_folder_is_measured_at_what_it_has(self, folder: Path, encoded: Encoded, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        (copy / "student.int8.onnx").unlink()
        assert set(measuring.measure(copy, TEXTS, encoded, INPUTS)) == {"fp32"}
