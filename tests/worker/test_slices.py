"""Parts of the test rows: which there are, and what is said of each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import JobFailure
from models.specs import (
    DatasetSpec,
    QuestionAnswering,
    SplitByColumn,
    SplitByDataset,
    SplitByShare,
    Task,
    TextClassification,
    TextRegression,
    TokenClassification,
)
from tests.factories import LABELS, parquet, tiny_label_sets, tiny_numbers, tiny_questions_dataset
from worker.data import Encoded
from worker.slices import by_label, by_length, by_value, slices, tokens_of
from worker.statistics import paired
from worker.tasks import for_task
from worker.tasks.base import Data, Split

KIND = for_task(TextClassification(kind="text-classification", text="text", label="label"))
MANY = for_task(TextClassification(kind="text-classification", text="text", label="label", multi_label=True))
NUMBERS = for_task(TextRegression(kind="text-regression", text="text", target="score"))


def a_split(targets: Any) -> Split:
    rows = len(targets)
    return Split([f"text {row}" for row in range(rows)], np.asarray(targets), np.ones(rows, np.bool_))


def rows_of(found: Any) -> dict[str, list[int]]:
    return {one.value: one.rows.tolist() for one in found}


class TestByLength:
    def test_thirds(self) -> None:
        found = list(by_length(np.arange(1, 31)))
        assert [one.value for one in found] == ["up to 10 tokens", "11 to 20 tokens", "more than 20 tokens"]
        assert [len(one.rows) for one in found] == [10, 10, 10]
        assert {one.name for one in found} == {"text length"}

    def test_equal_lengths_are_one_part(self) -> None:
        assert rows_of(by_length(np.array([8, 8, 8]))) == {"up to 8 tokens": [0, 1, 2]}

    def test_every_row_is_in_one_part(self) -> None:
        lengths = np.random.default_rng(0).poisson(3, 100) + 2
        rows = [row for one in by_length(lengths) for row in one.rows.tolist()]
        assert sorted(rows) == list(range(100))

    def test_the_tokens_of_windows_are_counted_together(self) -> None:
        ids = [np.zeros(1, np.int32)] * 3
        lengths = np.array([5, 7, 4])
        assert tokens_of(Encoded(ids, lengths, 0, rows=np.array([0, 0, 1])), 2).tolist() == [12, 4]
        assert tokens_of(Encoded(ids, lengths, 0), 3).tolist() == [5, 7, 4]


class TestByLabel:
    def test_labels_under_five_percent_stand_together(self) -> None:
        truth = np.array([0] * 60 + [1] * 34 + [2] * 4 + [3] * 2)
        found = rows_of(by_label(truth[:, None] == np.arange(5), ["a", "b", "c", "d", "never"]))
        assert {value: len(rows) for value, rows in found.items()} == {"a": 60, "b": 34, "rare labels": 6}
        assert found["rare labels"] == [94, 95, 96, 97, 98, 99]

    def test_a_row_with_two_labels_stands_in_two_parts(self) -> None:
        both = np.array([[1, 1], [1, 0], [0, 0]], np.bool_)
        assert rows_of(by_label(both, ["a", "b"])) == {"a": [0, 1], "b": [0]}

    def test_at_most_twenty_have_their_own(self) -> None:
        everything = np.ones((10, 25), np.bool_)
        found = rows_of(by_label(everything, [str(label) for label in range(25)]))
        assert list(found) == [*map(str, range(20)), "rare labels"]


class TestByValue:
    def test_the_commonest_first(self) -> None:
        found = list(by_value("source", ["b", "a", None, "a"]))
        assert found[0].name == "source"
        assert rows_of(found) == {"a": [1, 3], "b": [0], "(none)": [2]}

    def test_the_rest_is_other(self) -> None:
        values = [str(value) for value in range(30) for _ in range(40 - value)]
        found = rows_of(by_value("source", values))
        assert list(found) == [*map(str, range(20)), "other"]
        assert sum(map(len, found.values())) == len(values)

    def test_a_value_that_is_called_other_joins_it(self) -> None:
        values = ["other"] * 50 + [str(value) for value in range(21) for _ in range(2)]
        found = rows_of(by_value("source", values))
        assert len(found) == 21
        assert len(found["other"]) == 52
        assert rows_of(by_value("source", ["other", "a"])) == {"other": [0], "a": [1]}


# The first thirty rows are lost.
TRUTH = np.arange(90) % 3
ARMS: dict[str, Any] = {
    "teacher": TRUTH,
    "distilled": np.where(np.arange(90) < 30, (TRUTH + 1) % 3, TRUTH),
    "control": None,
}


class TestSlices:
    def found(self, **more: Any) -> dict[tuple[str, str], dict[str, Any]]:
        columns = {"half": ["first"] * 30 + ["second"] * 45 + ["few"] * 15}
        lengths = np.repeat([5, 10, 15], 30)
        rows = slices(KIND, a_split(TRUTH), LABELS, arms=ARMS, lengths=lengths, columns=columns, **more)
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows
        return {(row["name"], row["value"]): row for row in rows}

    def test_a_part_that_is_lost_is_found(self) -> None:
        rows = self.found()
        assert list(rows) == [
            *(("text length", f"{band} tokens") for band in ("up to 5", "6 to 10", "more than 10")),
            *(("true label", label) for label in LABELS),
            *(("half", value) for value in ("second", "first", "few")),
        ]
        assert rows["half", "first"]["arms"] == {"teacher": 1.0, "distilled": 0.0, "control": None}
        assert rows["half", "first"]["drop"]["value"] == 1.0
        assert rows["half", "second"]["drop"]["value"] == 0.0
        assert rows["true label", "neutral"]["arms"]["distilled"] == pytest.approx(2 / 3)

    def test_the_interval_is_of_these_rows_alone(self) -> None:
        row = self.found(confidence=0.9, seed=3)["true label", "neutral"]
        at = TRUTH == 1
        one, two = (KIND.statistics(ARMS[arm], a_split(TRUTH))[at] for arm in ("teacher", "distilled"))
        assert row["rows"] == 30
        assert row["drop"] == paired(one, two, KIND.metric, confidence=0.9, seed=3).as_json()
        assert row["note"] is None

    def test_few_rows_have_no_interval_and_say_so(self) -> None:
        row = self.found()["half", "few"]
        assert (row["rows"], row["drop"], row["note"]) == (15, None, "fewer than 20 rows: no interval")
        assert row["arms"]["distilled"] == 1.0

    def test_several_labels(self) -> None:
        truth = np.array([[1, 0, 0], [1, 1, 0]] * 20, np.float32)
        found = slices(
            MANY,
            a_split(truth),
            LABELS,
            arms={"teacher": truth > 0, "distilled": np.zeros_like(truth, np.bool_)},
            lengths=np.full(40, 5),
            columns={},
        )
        assert [(row["value"], row["rows"]) for row in found] == [
            ("up to 5 tokens", 40),
            ("negative", 40),
            ("neutral", 20),
        ]
        assert found[-1]["arms"] == {"teacher": 1.0, "distilled": 0.0}

    def test_numbers_have_no_labels(self) -> None:
        numbers = np.arange(40, dtype=np.float32)
        arms = {"teacher": numbers, "distilled": -numbers}
        (row,) = slices(NUMBERS, a_split(numbers), ["score"], arms=arms, lengths=np.full(40, 5), columns={})
        assert row["arms"] == {"teacher": pytest.approx(1.0), "distilled": pytest.approx(-1.0)}
        assert row["drop"]["value"] == pytest.approx(2.0)


class TestColumns:
    """How the values of `evaluation.slices` are read with the rows."""

    def read(self, path: Path, names: list[str], dataset: DatasetSpec | None = None, **paths: Path) -> Data:
        dataset = dataset or SplitByColumn(id="ds_1", split="part")
        return KIND.read(dataset, {"ds_1": path, **paths}, seed=0, slices=names)

    def columns(self, **more: Any) -> dict[str, Any]:
        return {
            "text": [f"text {row}" for row in range(8)],
            "label": ["a", "b"] * 4,
            "part": ["train", "test", "validation", "test", "train", "test", "validation", "test"],
            **more,
        }

    def test_values_stand_with_their_rows(self, tmp_path: Path) -> None:
        columns = self.columns(
            word=["-", " x ", "-", "", "-", None, "-", "y"],
            number=[0, 1, 0, 2, 0, None, 0, 3],
            truth=[True, True, False, False, True, None, True, True],
            share=[0.0, 0.5, 0.0, float("nan"), 0.0, 1.5, 0.0, 2.0],
        )
        data = self.read(parquet(tmp_path / "a.parquet", **columns), ["word", "number", "truth", "share"])
        assert data.test.inputs == ["text 1", "text 3", "text 5", "text 7"]
        assert data.slices == {
            "word": ["x", None, None, "y"],
            "number": ["1", "2", None, "3"],
            "truth": ["true", "false", None, "true"],
            "share": ["0.5", None, "1.5", "2.0"],
        }

    def test_a_row_that_is_dropped_takes_its_value_along(self, tmp_path: Path) -> None:
        columns = self.columns(word=list("abcdefgh"))
        columns["text"][3] = " "
        assert self.read(parquet(tmp_path / "a.parquet", **columns), ["word"]).slices == {"word": ["b", "f", "h"]}

    def test_a_column_of_the_task_may_be_one(self, tmp_path: Path) -> None:
        data = self.read(parquet(tmp_path / "a.parquet", **self.columns()), ["label", "part"])
        assert data.slices == {"label": ["b"] * 4, "part": ["test"] * 4}

    def test_three_datasets(self, tmp_path: Path) -> None:
        paths = {
            f"ds_{part}": parquet(
                tmp_path / f"{part}.parquet", text=[f"{part} 1", f"{part} 2"], label=["a", "b"], source=[part, "x"]
            )
            for part in ("train", "validation", "test")
        }
        dataset = SplitByDataset(train="ds_train", validation="ds_validation", test="ds_test")
        assert self.read(tmp_path, ["source"], dataset, **paths).slices == {"source": ["test", "x"]}

    @pytest.mark.parametrize(
        ("values", "code"),
        [(None, "missing_column"), ([["a"]] * 8, "bad_slice_column"), ([b"a"] * 8, "bad_slice_column")],
    )
    def test_what_cannot_be_one(self, tmp_path: Path, values: Any, code: str) -> None:
        more = {} if values is None else {"strange": values}
        with pytest.raises(JobFailure) as caught:
            self.read(parquet(tmp_path / "a.parquet", **self.columns(**more)), ["label", "strange"])
        assert (caught.value.code, caught.value.pointer) == (code, "/evaluation/slices/1")

    def test_other_kinds_of_task(self, tmp_path: Path) -> None:
        share = SplitByShare(id="ds_1", validation=10, test=20)
        words = [["ada", f"met{row}"] for row in range(60)]
        tagged = parquet(tmp_path / "words.parquet", tokens=words, tags=[["B-a", "O"]] * 60, row=list(range(60)))
        cases: list[tuple[Task, Path, str, Callable[[Any], str]]] = [
            (
                TextRegression(kind="text-regression", text="text", target="score"),
                tiny_numbers(tmp_path, 60),
                "text",
                str,
            ),
            (
                TextClassification(kind="text-classification", text="text", label="labels", multi_label=True),
                tiny_label_sets(tmp_path, 60),
                "text",
                str,
            ),
            (
                QuestionAnswering(kind="question-answering", question="question", context="context", answers="answers"),
                tiny_questions_dataset(tmp_path, 60),
                "context",
                lambda item: str(item.context),
            ),
            (
                TokenClassification(kind="token-classification", tokens="tokens", tags="tags"),
                tagged,
                "row",
                lambda item: str(item.words[1].removeprefix("met")),
            ),
        ]
        for task, path, column, value in cases:
            data = for_task(task).read(share, {"ds_1": path}, seed=0, slices=[column])
            assert data.slices == {column: [value(item) for item in data.test.inputs]}
            assert len(data.test) >= 20
