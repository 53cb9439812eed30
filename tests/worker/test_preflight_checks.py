"""What is said before the long work: each warning where it is due, and nothing where it is not."""

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from models.errors import JobFailure
from models.inputs import Input, Pair, Question, Words
from models.specs import TextClassification, TextRegression
from worker.data import Encoded
from worker.preflight import (
    Memory,
    available_memory,
    check_memory,
    label_counts,
    memory_estimate,
    row_warnings,
    step_zero,
    time_warnings,
)
from worker.tasks.base import Data, Split
from worker.tasks.multi_label import MultiLabelKind
from worker.tasks.text_classification import TextClassificationKind
from worker.tasks.text_regression import TextRegressionKind

CPU = torch.device("cpu")
TASK = TextClassification(kind="text-classification", text="text", label="label", max_length=16)
KIND = TextClassificationKind(TASK)
MULTI = MultiLabelKind(TASK.model_copy(update={"multi_label": True}))
NUMBER = TextRegressionKind(TextRegression(kind="text-regression", text="text", target="score"))


class OfWords(TextClassificationKind):
    """Labels of words; targets (N, P) are as they stand in the split."""

    shape = "words"


class OfSpans(TextClassificationKind):
    """Answers that lie in a context, which is read in windows."""

    shape = "span"


def data_of(inputs: list[Any], targets: Any, labels: tuple[str, ...] = ("a", "b"), labelled: Any = None) -> Data:
    train = Split(inputs, targets, np.ones(len(inputs), np.bool_) if labelled is None else np.array(labelled))
    return Data(train, train, train, labels, {}, [], {})


def encoded_of(lengths: list[int], places: list[list[int]] | None = None) -> Encoded:
    cut = None if places is None else [np.array(one, np.int32) for one in places]
    return Encoded([np.ones(one, np.int32) for one in lengths], np.array(lengths, np.int64), 0, places=cut)


def of_labels(targets: list[int], *, lengths: list[int] | None = None, inputs: list[Input] | None = None) -> list[str]:
    """The codes for rows with these labels."""
    data = data_of(inputs or [f"text {n}" for n in range(len(targets))], np.array(targets), ("a", "b"))
    found = row_warnings(KIND, data, encoded_of(lengths or [5] * len(targets)))
    return [code for code, _ in found]


class TestRows:
    def test_good_rows_give_no_warning(self) -> None:
        assert of_labels([0, 1] * 50) == []

    @pytest.mark.parametrize(("full", "codes"), [(1, []), (2, ["texts_truncated"])])
    def test_more_than_a_hundredth_is_cut(self, full: int, codes: list[str]) -> None:
        assert of_labels([0, 1] * 50, lengths=[16] * full + [15] * (100 - full)) == codes

    def test_the_share_and_the_limit_are_named(self) -> None:
        data = data_of([f"text {n}" for n in range(40)], np.array([0, 1] * 20))
        ((_, message),) = row_warnings(KIND, data, encoded_of([16] * 10 + [3] * 30))
        assert "25.0%" in message
        assert "16 tokens" in message

    def test_of_words_it_is_known_which_were_cut_off(self) -> None:
        inputs = [Words(("word", str(n))) for n in range(20)]
        data = data_of(inputs, np.array([[0, 1], [1, 0]] * 10))
        kind, full = OfWords(TASK), [16] * 20
        assert row_warnings(kind, data, encoded_of(full, [[1, 15]] * 20)) == []
        ((code, message),) = row_warnings(kind, data, encoded_of(full, [[1, -1]] + [[1, 15]] * 19))
        assert code == "texts_truncated"
        assert "5.0%" in message

    def test_a_context_in_windows_loses_nothing(self) -> None:
        data = data_of([Question("who", f"context {n}") for n in range(20)], np.zeros((20, 2), np.int64), ())
        assert row_warnings(OfSpans(TASK), data, encoded_of([16] * 20)) == []

    @pytest.mark.parametrize(("copies", "codes"), [(5, []), (6, ["duplicate_rows"])])
    def test_more_than_a_twentieth_are_equal(self, copies: int, codes: list[str]) -> None:
        inputs: list[Input] = [f"text {n}" for n in range(100 - copies)]
        inputs += [f"  TEXT  {n}" for n in range(copies)]
        assert of_labels([0, 1] * 50, inputs=inputs) == codes

    def test_pairs_are_equal_only_as_a_whole(self) -> None:
        inputs: list[Input] = [Pair("one premise", f"hypothesis {n}") for n in range(20)]
        assert of_labels([0, 1] * 10, inputs=inputs) == []
        assert of_labels([0, 1] * 20, inputs=inputs * 2) == ["duplicate_rows"]

    @pytest.mark.parametrize(("rare", "codes"), [(10, []), (9, ["labels_unbalanced"])])
    def test_one_label_is_more_than_fifty_times_another(self, rare: int, codes: list[str]) -> None:
        found = of_labels([1] * rare + [0] * 500)
        assert [code for code in found if code == "labels_unbalanced"] == codes

    def test_a_label_with_few_rows_is_named_and_one_with_none_is_not(self) -> None:
        data = data_of([f"text {n}" for n in range(23)], np.array([0] * 14 + [1] * 9), ("plenty", "scarce", "absent"))
        ((code, message),) = row_warnings(KIND, data, encoded_of([5] * 23))
        assert code == "few_rows_of_label"
        assert "'scarce' (9)" in message
        assert "plenty" not in message
        assert "absent" not in message

    def test_of_very_many_scarce_labels_ten_are_named(self) -> None:
        labels = tuple(f"label {n:02}" for n in range(14))
        data = data_of([f"text {n}" for n in range(14)], np.arange(14), labels)
        ((_, message),) = row_warnings(KIND, data, encoded_of([5] * 14))
        assert "'label 09' (1) and 4 more" in message

    def test_rows_without_a_label_are_counted(self) -> None:
        labelled = [True] * 30 + [False] * 10
        targets = np.array([0, 1] * 15 + [-1] * 10)
        data = data_of([f"text {n}" for n in range(40)], targets, labelled=labelled)
        ((code, message),) = row_warnings(KIND, data, encoded_of([5] * 40))
        assert code == "training_rows_unlabelled"
        assert "10 of 40" in message

    def test_with_no_label_at_all_nothing_is_said_of_labels(self) -> None:
        data = data_of(["x", "y"], np.array([-1, -1]), labelled=[False, False])
        assert [code for code, _ in row_warnings(KIND, data, encoded_of([3, 3]))] == ["training_rows_unlabelled"]

    def test_no_rows_are_no_error(self) -> None:
        assert row_warnings(KIND, data_of([], np.array([], np.int64)), encoded_of([])) == []


class TestLabelCounts:
    def test_of_one_label_each(self) -> None:
        data = data_of(["x", "y", "z"], np.array([1, -1, 1]), ("a", "b", "c"))
        assert label_counts(KIND, data, encoded_of([3] * 3)) == {"a": 0, "b": 2, "c": 0}

    def test_of_words_places_that_are_padding_are_none(self) -> None:
        targets = np.array([[0, 1, 1], [1, -1, -1]])
        data = data_of([Words(("x", "y", "z")), Words(("x",))], targets)
        assert label_counts(OfWords(TASK), data, encoded_of([5, 3])) == {"a": 1, "b": 3}

    def test_words_outside_of_every_entity_are_left_out(self) -> None:
        data = data_of([Words(("x", "y")), Words(("z",))], np.array([[0, 1], [0, -1]]), labels=("O", "B-a"))
        assert label_counts(OfWords(TASK), data, encoded_of([4, 3])) == {"B-a": 1}

    def test_of_any_number_of_labels(self) -> None:
        targets = np.array([[1, 0], [1, 1], [np.nan, np.nan]], np.float32)
        assert label_counts(MULTI, data_of(["x", "y", "z"], targets), encoded_of([3] * 3)) == {"a": 2, "b": 1}

    def test_a_number_is_no_label(self) -> None:
        data = data_of(["x"], np.array([0.5], np.float32), ("score",))
        assert label_counts(NUMBER, data, encoded_of([3])) == {}


class TestMemory:
    def test_of_the_networks_is_sixteen_and_four_bytes_a_parameter(self) -> None:
        needed = memory_estimate(student=100, teachers=1000, tokens=8, longest=4, hidden=2, layers=1, heads=1)
        assert needed.networks == 1600 + 4000

    def test_of_a_base_encoder_is_the_published_formula_at_four_bytes(self) -> None:
        needed = memory_estimate(student=0, teachers=0, tokens=4096, longest=512, hidden=768, layers=12, heads=12)
        by_the_paper = 12 * 512 * 8 * 768 * (34 + 5 * 12 * 512 / 768)
        assert needed.activations == 2 * by_the_paper

    def test_smaller_micro_batches_take_less_but_never_less_than_the_longest_row(self) -> None:
        sizes = [
            memory_estimate(student=0, teachers=0, tokens=tokens, longest=64, hidden=8, layers=2, heads=2).activations
            for tokens in (256, 128, 64, 16)
        ]
        assert sizes[0] == 2 * sizes[1] == 4 * sizes[2]
        assert sizes[3] == sizes[2]

    def test_networks_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(JobFailure, match=r"2\.0 GiB.*1\.0 GiB") as caught:
            check_memory(Memory(2 << 30, 0), 1 << 30)
        assert caught.value.code == "too_little_memory"
        assert caught.value.hint

    def test_activations_that_may_not_fit_are_a_warning(self) -> None:
        ((code, message),) = check_memory(Memory(500, 450), 1000)
        assert code == "memory_is_tight"
        assert "micro_batch_tokens" in message

    @pytest.mark.parametrize("available", [1000, None])
    def test_enough_or_unknown_is_fine(self, available: int | None) -> None:
        assert check_memory(Memory(500, 400), available) == []


class TestAvailableMemory:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    5000 kB\nHugePages_Total: 0\n")
        (tmp_path / "proc/self/status").write_text("Name:\tpython\nVmRSS:\t    300 kB\n")
        return tmp_path

    def test_is_the_hosts_with_what_this_process_has(self, root: Path) -> None:
        assert available_memory(CPU, root) == 5300 * 1024

    @pytest.mark.parametrize(("limit", "kilobytes"), [("max", 5000), (f"{2000 * 1024}", 1600), (f"{1 << 60}", 5000)])
    def test_is_the_containers_if_that_is_less(self, root: Path, limit: str, kilobytes: int) -> None:
        (root / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (root / "sys/fs/cgroup/memory.stat").write_text(f"anon {400 * 1024}\nfile 99999999\n")
        assert available_memory(CPU, root) == (kilobytes + 300) * 1024

    def test_is_not_known_without_proc(self, tmp_path: Path) -> None:
        assert available_memory(CPU, tmp_path) is None

    def test_of_this_host_is_what_it_has(self) -> None:
        found = available_memory(CPU)
        assert found is not None
        assert 0 < found <= psutil.virtual_memory().total

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_of_a_gpu_is_what_is_free_and_ours(self) -> None:
        device = torch.device("cuda", 0)
        kept = torch.empty(1 << 20, device=device)
        found = available_memory(device)
        assert found is not None
        assert kept.nbytes < found <= torch.cuda.get_device_properties(device).total_memory


class TestTime:
    def test_what_will_take_longer_than_the_limit_is_a_warning(self) -> None:
        ((code, message),) = time_warnings(50.0, 49)
        assert code == "time_limit_likely"
        assert "about 50 s" in message

    @pytest.mark.parametrize("limit", [50, None])
    def test_else_nothing_is_said(self, limit: int | None) -> None:
        assert time_warnings(50.0, limit) == []


class TestStepZero:
    def test_gives_the_share_of_distillation(self) -> None:
        assert step_zero(3.0, 4.0) == 0.75
        assert step_zero(2.0, 2.0) == 1.0

    def test_a_share_is_at_most_one(self) -> None:
        """Gradients that point against each other have a sum that is shorter than a part."""
        assert step_zero(2.0, 1.0) == 1.0

    @pytest.mark.parametrize(
        ("distillation", "total"), [(0.0, 1.0), (float("nan"), 1.0), (float("inf"), float("inf")), (1.0, float("nan"))]
    )
    def test_no_gradient_from_the_teacher_stops_the_job(self, distillation: float, total: float) -> None:
        with pytest.raises(JobFailure) as caught:
            step_zero(distillation, total)
        assert caught.value.code == "no_gradient"
        assert caught.value.hint
