"""`worker.tasks.multi_label`: reading sets of labels, and scoring them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from models.errors import JobFailure
from models.specs import SplitByColumn, SplitByShare, TextClassification
from tests.factories import parquet, tiny_label_sets
from worker.data import Answers, Encoded
from worker.tasks import for_task
from worker.tasks.base import Split
from worker.tasks.multi_label import MultiLabelKind

TASK = TextClassification(kind="text-classification", text="text", label="labels", multi_label=True)
KIND = MultiLabelKind(TASK)
SHARE = SplitByShare(id="ds_1", validation=0.1, test=0.2)
BY_COLUMN = SplitByColumn(id="ds_1", split="part")
NOTHING = Encoded([], np.empty(0, np.int64), 0)
PARTS = ["train", "train", "train", "train", "validation", "test"]


def read(path, dataset=SHARE):
    return for_task(TASK).read(dataset, {"ds_1": path}, seed=0)


def write(path, labels, **more):
    return parquet(path, text=[f"text {row}" for row in range(len(labels))], labels=labels, **more)


def split_of(*rows):
    values = np.array([[np.nan] * 3 if row is None else row for row in rows], np.float32)
    return Split(list(map(str, rows)), values, ~np.isnan(values).any(axis=1))


class TestReading:
    def test_learnable_rows(self, tmp_path):
        found = read(tiny_label_sets(tmp_path))
        assert (len(found.train), len(found.validation), len(found.test)) == (168, 24, 48)
        assert found.labels == ("negative", "neutral", "positive")
        assert found.train.targets.dtype == np.float32
        sizes = found.train.targets.sum(axis=1)
        assert {0.0, 1.0, 2.0} == set(sizes.tolist())
        # Even in the first label, the empty set included.
        assert (found.test.targets.sum(axis=1) == 0).mean() == pytest.approx((sizes == 0).mean(), abs=0.03)
        assert found.warnings == []

    @pytest.mark.parametrize(
        "labels",
        [
            [["b", "a"], [], None, ["a ", "", None, "a"], ["a"], ["b"]],
            ["b|a", "|", " ", "a | | a", "a", "b"],
            pa.array(["b|a", "|", None, "a", "a", "b"]).dictionary_encode(),
            pa.array([["b", "a"], [], None, ["a"], ["a"], ["b"]], pa.large_list(pa.large_string())),
        ],
    )
    def test_lists_and_bars(self, tmp_path, labels):
        found = read(write(tmp_path / "a.parquet", labels, part=PARTS), BY_COLUMN)
        assert found.labels == ("a", "b")
        assert found.train.labelled.tolist() == [True, True, False, True]
        assert found.train.targets[[0, 1, 3]].tolist() == [[1, 1], [0, 0], [1, 0]]
        assert np.isnan(found.train.targets[2]).all()
        assert found.hashes["test"] == read(write(tmp_path / "b.parquet", labels, part=PARTS), BY_COLUMN).hashes["test"]

    def test_numbers_are_names_in_their_order(self, tmp_path):
        assert read(write(tmp_path / "a.parquet", [[10, 9], [2], [9]] * 10)).labels == ("2", "9", "10")

    def test_a_label_that_is_never_taught(self, tmp_path):
        labels = [["a"], ["b"], [], None, ["c"], ["a", "c"]]
        found = read(write(tmp_path / "a.parquet", labels, part=PARTS), BY_COLUMN)
        assert found.warnings == [("label_missing_in_train", "no training row has the label 'c'")]

    @pytest.mark.parametrize(
        ("labels", "code"),
        [
            ([1, 2] * 600, "bad_label"),
            ([[0.5], [1.0]] * 600, "bad_label"),
            ([["a"], []] * 600, "one_label_only"),
            ([None] * 1200, "one_label_only"),
            ([[str(i), str(i + 1)] for i in range(1200)], "too_many_labels"),
        ],
    )
    def test_refused(self, tmp_path, labels, code):
        with pytest.raises(JobFailure) as caught:
            read(write(tmp_path / "a.parquet", labels))
        assert (caught.value.code, caught.value.pointer) == (code, "/task/label")
        assert caught.value.hint


bits = st.lists(st.booleans(), min_size=3, max_size=3)


class TestScores:
    @settings(max_examples=40)
    @given(st.lists(st.tuples(bits, bits), min_size=1, max_size=20))
    def test_metric_of_statistics_is_the_primary_score(self, rows):
        answers, truth = np.array([row[0] for row in rows]), [row[1] for row in rows]
        split = split_of(*truth)
        scores = KIND.scores(answers, split)
        assert KIND.metric(KIND.statistics(answers, split).sum(axis=0)) == pytest.approx(scores["micro_f1"])
        assert KIND.right(answers, split).mean() == pytest.approx(scores["exact"])
        assert KIND.same(answers, answers).all()
        # No constant set beats the one that is reported, and a blind guess is one of them.
        constant = KIND.constant(split, "abc")["micro_f1"]
        for one in np.ndindex(2, 2, 2):
            sums = KIND.statistics(np.tile(np.array(one, np.bool_), (len(truth), 1)), split).sum(axis=0)
            assert KIND.metric(sums) <= constant + 1e-9
        assert KIND.chance(split, "abc") <= constant + 1e-9

    def test_against_scikit_learn(self):
        random = np.random.default_rng(0)
        answers, truth = random.random((100, 3)) < 0.4, random.random((100, 3)) < 0.4
        found = KIND.scores(answers, split_of(*truth))
        assert found["micro_f1"] == f1_score(truth, answers, average="micro")
        assert found["macro_f1"] == pytest.approx(f1_score(truth, answers, average="macro"))

    def test_labels_that_do_not_occur_and_rows_without_do_not_count(self):
        split = split_of([1, 0, 0], None, [1, 0, 0])
        assert KIND.scores(np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0]], np.bool_), split) == {
            "micro_f1": 1.0,
            "macro_f1": 1.0,
            "exact": 1.0,
        }
        with pytest.raises(ValueError, match="no row has a label"):
            KIND.scores(np.zeros((1, 3), np.bool_), split_of(None))
        assert KIND.constant(split_of(None), "abc") is None

    def test_above_zero_is_yes(self):
        logits = np.array([[0.1, -0.1, 0.0], [np.nan] * 3], np.float32)
        found = KIND.predictions(Answers.whole(logits), NOTHING, ["a", "b"])
        assert found.tolist() == [[True, False, False], [False, False, False]]
        assert KIND.right(found, split_of([1, 0, 0], None)).tolist() == [True, False]
        assert KIND.same(found, ~found).tolist() == [False, False]
        assert np.isnan(KIND.targets(split_of(None, [1, 0, 0]), NOTHING).numpy()[0]).all()

    def test_chance(self):
        assert KIND.chance(split_of([1, 0, 0], [0, 1, 0], None), "abc") == pytest.approx(2 * 2 / (2 + 6))
        assert KIND.chance(split_of([0, 0, 0]), "abc") == 0

    def test_as_people_read_it(self):
        split = split_of([1, 0, 1], None)
        assert KIND.truth(split, 0, ("a", "b", "c")) == {"labels": ["a", "c"]}
        assert KIND.truth(split, 1, ("a", "b", "c")) is None
        assert KIND.shown(np.zeros((1, 3), np.bool_), 0, ("a", "b", "c")) == {"labels": []}
        table = KIND.per_class(np.array([[1, 1, 0], [1, 1, 1]], np.bool_), split, ("a", "b", "c"))
        assert [row["support"] for row in table] == [1, 0, 1]
        assert [row["f1"] for row in table] == [1.0, 0.0, 0.0]
