"""`worker.tasks.text_classification`: reading, tokenizing, scoring."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score
from transformers import AutoTokenizer

from models.errors import JobFailure
from models.specs import SplitByColumn, SplitByDataset, SplitByShare, TextClassification
from tests.factories import parquet, tiny_dataset, tiny_rows, tiny_teacher
from worker.data import normalise
from worker.tasks import for_task
from worker.tasks import text_classification as tc

TASK = TextClassification(kind="text-classification", text="text", label="label", max_length=16)
SHARE = SplitByShare(id="ds_1", validation=0.1, test=0.2)


def read(path, dataset=SHARE, seed=0):
    return tc.read(TASK, dataset, {"ds_1": path}, seed=seed)


def refused(path, dataset=SHARE):
    with pytest.raises(JobFailure) as caught:
        read(path, dataset)
    return caught.value


class TestShares:
    def test_the_whole_dataset_once(self, tmp_path):
        texts, names = tiny_rows(300)
        found = read(tiny_dataset(tmp_path, 300))
        assert (len(found.train), len(found.validation), len(found.test)) == (210, 30, 60)
        assert found.labels == ("negative", "neutral", "positive")
        label_of = dict(zip(texts, names, strict=True))
        together = [
            (text, found.labels[number])
            for side in (found.train, found.validation, found.test)
            for text, number in zip(side.texts, side.labels, strict=True)
        ]
        assert dict(together) == label_of
        assert len(together) == 300
        assert found.warnings == []

    def test_repeats_with_its_seed(self, tmp_path):
        path = tiny_dataset(tmp_path)
        assert read(path).hashes == read(path).hashes
        assert set(read(path).hashes) == {"train", "validation", "test"}
        assert read(path).hashes["test"] != read(path, seed=1).hashes["test"]

    def test_limit_caps_training_rows_only(self, tmp_path):
        path = tiny_dataset(tmp_path)
        whole, capped = read(path), read(path, SHARE.model_copy(update={"limit": 30}))
        assert len(capped.train) == 30
        assert np.bincount(capped.train.labels).tolist() == [10, 10, 10]
        assert capped.hashes["test"] == whole.hashes["test"]
        assert set(capped.train.texts) <= set(whole.train.texts)

    def test_duplicates_stay_together(self, tmp_path):
        texts, names = tiny_rows(100)
        path = parquet(
            tmp_path / "a.parquet", text=[*texts, *(f" {text.upper()} " for text in texts)], label=[*names, *names]
        )
        found = read(path)
        sides = [{normalise(text) for text in side.texts} for side in (found.train, found.validation, found.test)]
        assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
        assert (len(found.validation), len(found.test)) == (20, 40)

    def test_rows_without_a_label_train_and_rows_without_a_text_go(self, tmp_path):
        texts, names = tiny_rows(60)
        path = parquet(
            tmp_path / "a.parquet",
            text=[*texts, "no label", "blank label", "  ", None],
            label=[*names, None, " ", "positive", "positive"],
        )
        found = read(path)
        assert sum(map(len, (found.train, found.validation, found.test))) == 62
        assert (found.train.labels == -1).sum() == 2
        assert (np.concatenate([found.validation.labels, found.test.labels]) >= 0).all()
        assert found.warnings == [("empty_text", "2 rows without a text were dropped")]


class TestLabels:
    @pytest.mark.parametrize(
        ("values", "names"),
        [
            ([10, 9, 2] * 10, ("2", "9", "10")),
            (["10", "9", "-1"] * 10, ("-1", "9", "10")),
            ([True, False] * 15, ("false", "true")),
            ([1.0, None, 0.0] * 10, ("0", "1")),
            ([" b", "a ", "b"] * 10, ("a", "b")),
        ],
    )
    def test_names_and_order(self, tmp_path, values, names):
        path = parquet(tmp_path / "a.parquet", text=[f"text {i}" for i in range(30)], label=values)
        assert read(path).labels == names

    def test_dictionary_columns(self, tmp_path):
        table = pa.table(
            {"text": [f"text {i}" for i in range(30)], "label": pa.array(["x", "y"] * 15).dictionary_encode()}
        )
        pq.write_table(table, tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet").labels == ("x", "y")

    @pytest.mark.parametrize(
        ("values", "code"),
        [
            (["same"] * 1200, "one_label_only"),
            ([None] * 1200, "one_label_only"),
            ([str(i) for i in range(1200)], "too_many_labels"),
            ([i / 7 for i in range(1200)], "bad_label"),
        ],
    )
    def test_refused(self, tmp_path, values, code):
        path = parquet(tmp_path / "a.parquet", text=[f"text {i}" for i in range(1200)], label=values)
        failure = refused(path)
        assert (failure.code, failure.pointer) == (code, "/task/label")

    def test_texts_must_be_texts(self, tmp_path):
        failure = refused(parquet(tmp_path / "a.parquet", text=[1, 2, 3], label=["a", "b", "a"]))
        assert (failure.code, failure.pointer) == ("not_text", "/task/text")

    def test_missing_column(self, tmp_path):
        failure = refused(parquet(tmp_path / "a.parquet", text=["a"], tag=["b"]))
        assert (failure.code, failure.pointer) == ("missing_column", "/task/label")


class TestSplitColumn:
    BY_COLUMN = SplitByColumn(id="ds_1", split="part")

    def test_leaks_are_dropped_from_the_lesser_side(self, tmp_path):
        path = parquet(
            tmp_path / "a.parquet",
            text=["a1", "a2", "B1", "c1", "b1", "b2", "C1", "c1", "c2"],
            label=["x", "y", "x", "x", "x", "y", "x", "x", "y"],
            part=["train"] * 4 + ["validation"] * 3 + ["Test", "test "],
        )
        found = read(path, self.BY_COLUMN)
        assert (found.train.texts, found.validation.texts, found.test.texts) == (
            ["a1", "a2"],
            ["b1", "b2"],
            ["c1", "c2"],
        )
        assert [code for code, _ in found.warnings] == ["leaking_rows_dropped"] * 2
        assert any(message.startswith("2 training rows") for _, message in found.warnings)

    @pytest.mark.parametrize("strange", ["dev", None, 3])
    def test_other_words(self, tmp_path, strange):
        parts = ["1", "2", strange] if isinstance(strange, str) else [strange] * 3
        path = parquet(tmp_path / "a.parquet", text=["a", "b", "c"], label=["x", "y", "x"], part=parts)
        failure = refused(path, self.BY_COLUMN)
        assert (failure.code, failure.pointer) == ("bad_split_column", "/dataset/split")

    def test_a_side_without_rows(self, tmp_path):
        path = parquet(tmp_path / "a.parquet", text=["a", "b"], label=["x", "y"], part=["train", "test"])
        assert refused(path, self.BY_COLUMN).code == "too_few_rows"

    def test_unlabelled_test_rows(self, tmp_path):
        path = parquet(
            tmp_path / "a.parquet",
            text=["a", "b", "c", "d"],
            label=["x", "y", None, "x"],
            part=["train", "train", "test", "validation"],
        )
        assert refused(path, self.BY_COLUMN).code == "unlabelled_rows"

    def test_a_label_that_is_never_taught(self, tmp_path):
        path = parquet(
            tmp_path / "a.parquet",
            text=["a", "b", "c", "d"],
            label=["x", "y", "z", "x"],
            part=["train", "train", "test", "validation"],
        )
        found = read(path, self.BY_COLUMN)
        assert found.warnings == [("label_missing_in_train", "no training row has the label 'z'")]


class TestThreeDatasets:
    def test_each_is_its_side(self, tmp_path):
        spec = SplitByDataset(train="ds_a", validation="ds_b", test="ds_c", limit=3)
        paths = {
            "ds_a": parquet(tmp_path / "a.parquet", text=["a1", "a2", "a3", "a4", "c1"], label=[0, 1, 0, 1, 0]),
            "ds_b": parquet(tmp_path / "b.parquet", text=["b1", "b2"], label=["0", "1"]),
            "ds_c": parquet(tmp_path / "c.parquet", text=["c1"], label=[1]),
        }
        found = tc.read(TASK, spec, paths, seed=0)
        assert len(found.train) == 3
        assert "c1" not in found.train.texts
        assert found.validation.texts == ["b1", "b2"]
        assert found.labels == ("0", "1")
        assert found.test.labels.tolist() == [1]


class TestEncode:
    def test_as_transformers_would(self, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher(tmp_path))
        texts = [*tiny_rows(50)[0], "word " * 60, "x"]
        found = tc.encode(tokenizer, texts, 16)
        expected = tokenizer(texts, truncation=True, max_length=16)["input_ids"]
        assert [row.tolist() for row in found.ids] == expected
        assert found.lengths.tolist() == [len(row) for row in expected]
        assert found.lengths.max() == 16
        assert found.ids[0].dtype == np.int32
        assert found.pad_id == tokenizer.pad_token_id

    def test_leaves_truncation_and_padding_off(self, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher(tmp_path))
        tokenizer.backend_tokenizer.enable_padding(length=40)
        assert tc.encode(tokenizer, ["good"], 8).lengths.tolist() == [3]
        assert tokenizer.backend_tokenizer.truncation is None
        assert tokenizer.backend_tokenizer.padding is None

    def test_nothing(self, tmp_path):
        assert len(tc.encode(AutoTokenizer.from_pretrained(tiny_teacher(tmp_path)), [], 8)) == 0


class TestScores:
    def test_rows_without_a_label_do_not_count(self):
        logits = np.array([[2.0, 1], [0, 1], [0, 1], [5, 0]], np.float32)
        found = tc.scores(logits, np.array([0, 1, 0, -1]))
        assert found == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(2 / 3)}

    def test_against_scikit_learn(self):
        random = np.random.default_rng(0)
        logits, targets = random.normal(size=(200, 4)), random.integers(0, 4, 200)
        assert tc.scores(logits, targets)["macro_f1"] == f1_score(targets, logits.argmax(1), average="macro")

    def test_no_label_at_all(self):
        with pytest.raises(ValueError, match="no row has a label"):
            tc.scores(np.zeros((2, 2)), np.array([-1, -1]))


def test_the_task_finds_its_module():
    assert for_task(TASK) is tc
    assert tc.template(TASK) != tc.template(TASK.model_copy(update={"max_length": 32}))
