"""Answers and latencies by the runtime that serves, and which precision that is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertTokenizer

from models.runtime import Runtime
from models.specs import TextClassification, TextRegression
from tests.factories import LABELS, tiny_network, tiny_rows, tiny_tokenizer
from worker import export, measuring
from worker.data import Answers, Encoded
from worker.measuring import Choice, Latency, Measured, choose_precision
from worker.tasks import for_task
from worker.tasks.base import TaskKind

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


class TestChoosePrecision:
    SAME = [0, 1, 2] * 100

    def test_int8_is_served_where_it_agrees_and_is_faster(self) -> None:
        choice = choose_precision("auto", TEXTS, {"fp32": labelled(self.SAME, 2.0), "int8": labelled(self.SAME, 1.0)})
        assert choice.served == "int8"
        assert "100.0 %" in choice.reason
        assert "1.00 ms against 2.00 ms" in choice.reason

    @pytest.mark.parametrize(("wrong", "served"), [(4, "int8"), (5, "fp32")])
    def test_agreement_is_asked_for_exactly(self, wrong: int, served: str) -> None:
        other = [(label + 1) % 3 for label in self.SAME[:wrong]] + self.SAME[wrong:]
        choice = choose_precision("auto", TEXTS, {"fp32": labelled(self.SAME, 2.0), "int8": labelled(other, 1.0)})
        assert choice.served == served
        assert f"{100 * (1 - wrong / 300):.1f} %" in choice.reason

    def test_a_slower_int8_is_not_served(self) -> None:
        choice = choose_precision("auto", TEXTS, {"fp32": labelled(self.SAME, 1.0), "int8": labelled(self.SAME, 1.0)})
        assert choice.served == "fp32"
        assert "not faster" in choice.reason

    @pytest.mark.parametrize("asked", ["fp32", "int8"])
    def test_the_spec_has_the_last_word(self, asked: Any) -> None:
        both = {"fp32": labelled(self.SAME, 1.0), "int8": labelled([0] * 300, 9.0)}
        assert choose_precision(asked, TEXTS, both) == Choice(asked, f"The job asks for {asked}.")  # type: ignore[arg-type]

    def test_without_int8(self) -> None:
        assert choose_precision("auto", TEXTS, {"fp32": labelled(self.SAME)}).served == "fp32"

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
        choice = choose_precision("auto", NUMBERS, {"fp32": fp32, "int8": int8})
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
