"""`worker.tasks.text_regression`: reading numbers, and scoring them."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from models.errors import JobFailure
from models.inputs import Pair
from models.specs import SplitByColumn, SplitByShare, TextRegression
from tests.factories import parquet, tiny_numbers
from worker.data import Answers, Encoded
from worker.tasks import for_task
from worker.tasks.base import Split
from worker.tasks.text_regression import TextRegressionKind

TASK = TextRegression(kind="text-regression", text="text", target="score")
KIND = TextRegressionKind(TASK)
SHARE = SplitByShare(id="ds_1", validation=0.1, test=0.2)
NOTHING = Encoded([], np.empty(0, np.int64), 0)


def read(path, dataset=SHARE, task=TASK):
    return for_task(task).read(dataset, {"ds_1": path}, seed=0)


def write(path, scores, **more):
    return parquet(path, text=[f"text {row}" for row in range(len(scores))], score=scores, **more)


def split_of(values):
    targets = np.array(values, np.float32)
    return Split([str(row) for row in range(len(targets))], targets, ~np.isnan(targets))


class TestReading:
    def test_learnable_rows(self, tmp_path):
        found = read(tiny_numbers(tmp_path))
        assert (len(found.train), len(found.validation), len(found.test)) == (168, 24, 48)
        assert found.labels == ("score",)
        assert found.train.targets.dtype == np.float32
        # Even in the target: all its values are in each part.
        assert np.unique(found.test.targets).tolist() == np.unique(found.train.targets).tolist()
        assert KIND.width == 1
        assert found.warnings == []

    def test_pairs_and_gaps(self, tmp_path):
        task = TASK.model_copy(update={"text_pair": "other"})
        parts = ["train", "train", "train", "validation", "test"]
        path = write(tmp_path / "a.parquet", [1, None, float("nan"), 2, 3], other=["b"] * 5, part=parts)
        found = read(path, SplitByColumn(id="ds_1", split="part"), task)
        assert found.train.inputs[0] == Pair("text 0", "b")
        assert found.train.labelled.tolist() == [True, False, False]
        assert np.isnan(KIND.targets(found.train, NOTHING).numpy()).tolist() == [False, True, True]
        assert for_task(task).template() != KIND.template()

    @pytest.mark.parametrize("scores", [[1, 2, 3] * 10, [Decimal("1.5"), Decimal("2.5"), None] * 10])
    def test_kinds_of_numbers(self, tmp_path, scores):
        found = read(write(tmp_path / "a.parquet", scores))
        assert set(found.test.targets.tolist()) <= {float(score) for score in scores if score is not None}

    @pytest.mark.parametrize(
        ("scores", "code"),
        [
            (["1", "2"] * 10, "bad_target"),
            ([True, False] * 10, "bad_target"),
            ([1.0, float("inf")] * 10, "bad_target"),
            ([1.0, -1e300] * 10, "bad_target"),
            ([1.0, None] * 10, "one_value_only"),
            ([None, None] * 10, "one_value_only"),
        ],
    )
    def test_refused(self, tmp_path, scores, code):
        with pytest.raises(JobFailure) as caught:
            read(write(tmp_path / "a.parquet", scores))
        assert (caught.value.code, caught.value.pointer) == (code, "/task/target")
        assert caught.value.hint


values = st.floats(-1e6, 1e6, width=32)


class TestScores:
    @given(st.lists(st.tuples(values, values), min_size=1, max_size=30))
    def test_metric_of_statistics_is_the_primary_score(self, rows):
        answers, targets = np.array(rows, np.float32).T
        split = split_of(targets)
        sums = KIND.statistics(answers, split).sum(axis=0)
        assert KIND.metric(sums) == pytest.approx(KIND.scores(answers, split)["pearson"], abs=1e-6)

    @pytest.mark.parametrize("shift", [0.0, 1e4])
    def test_resampled_rows(self, shift):
        random = np.random.default_rng(0)
        targets = random.normal(size=100).astype(np.float32) + np.float32(shift)
        answers = targets + random.normal(size=100).astype(np.float32)
        rows = random.integers(0, 100, (5, 100))
        sums = KIND.statistics(answers, split_of(targets))[rows].sum(axis=1)
        expected = [pearsonr(answers[one].astype(float), targets[one].astype(float)).statistic for one in rows]
        np.testing.assert_allclose(KIND.metric(sums), expected, atol=1e-9)

    def test_every_score(self):
        random = np.random.default_rng(0)
        answers, targets = random.normal(size=(2, 50)).astype(np.float32)
        found = KIND.scores(np.append(answers, 9), split_of([*targets, np.nan]))
        assert found["pearson"] == pytest.approx(pearsonr(answers, targets).statistic, abs=1e-5)
        assert found["spearman"] == pytest.approx(spearmanr(answers, targets).statistic)
        assert found["mse"] == pytest.approx(np.square(answers - targets).mean(), rel=1e-5)
        with pytest.raises(ValueError, match="no row has a number"):
            KIND.scores(answers[:1], split_of([np.nan]))

    def test_what_does_not_vary_says_nothing(self):
        answers, split = np.full(3, 0.3, np.float32), split_of([1, 2, 3])
        assert KIND.scores(answers, split) | {"mse": 0.0} == {"pearson": 0.0, "spearman": 0.0, "mse": 0.0}
        assert KIND.metric(KIND.statistics(answers, split).sum(axis=0)) == 0
        # One row drawn again and again.
        repeated = 3 * KIND.statistics(np.array([1, 5, 2], np.float32), split)[:1].sum(axis=0)
        assert KIND.metric(repeated) == 0
        assert KIND.metric(np.zeros((2, 6))).tolist() == [0, 0]
        assert KIND.chance(split, ("score",)) == 0

    def test_answers(self):
        logits = np.array([[0.5], [np.nan], [np.inf]], np.float32)
        found = KIND.predictions(Answers.whole(logits), NOTHING, ["a", "b", "c"])
        assert found.tolist() == [0.5, 0, 0]
        split = split_of([0.25, np.nan, 1])
        assert KIND.right(found, split) is None
        assert KIND.same(found, found) is None
        assert KIND.constant(split, ("score",)) is None
        assert KIND.per_class(found, split, ("score",)) == []
        assert KIND.shown(found, 0, ("score",)) == {"score": 0.5}
        assert KIND.truth(split, 0, ("score",)) == {"score": 0.25}
        assert KIND.truth(split, 1, ("score",)) is None
