"""`worker.tasks.text_classification` and what all kinds share of reading: sides, leaks, recorded answers; scoring."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import AutoTokenizer

from models.errors import JobFailure
from models.inputs import Pair
from models.specs import SplitByColumn, SplitByDataset, SplitByShare, TextClassification
from tests.factories import parquet, tiny_dataset, tiny_pairs, tiny_rows, tiny_teacher
from worker.data import Answers, Encoded, normalise
from worker.tasks import for_task
from worker.tasks.base import Split
from worker.tasks.text_classification import TextClassificationKind

TASK = TextClassification(kind="text-classification", text="text", label="label", max_length=16)
PAIRS = TASK.model_copy(update={"text_pair": "text_pair"})
KIND = TextClassificationKind(TASK)
SHARE = SplitByShare(id="ds_1", validation=0.1, test=0.2)
BY_COLUMN = SplitByColumn(id="ds_1", split="part")
NOTHING = Encoded([], np.empty(0, np.int64), 0)


def read(path, dataset=SHARE, seed=0, task=TASK, **options):
    return for_task(task).read(dataset, {"ds_1": path}, seed=seed, **options)


def refused(path, dataset=SHARE, **options):
    with pytest.raises(JobFailure) as caught:
        read(path, dataset, **options)
    assert caught.value.hint or caught.value.code == "missing_column"
    return caught.value


def sides_of(found):
    return found.train, found.validation, found.test


def labelled(*targets):
    values = np.array(targets, np.int64)
    return Split([str(row) for row in range(len(values))], values, values >= 0)


class TestShares:
    def test_the_whole_dataset_once(self, tmp_path):
        texts, names = tiny_rows(300)
        found = read(tiny_dataset(tmp_path, 300))
        assert [len(side) for side in sides_of(found)] == [210, 30, 60]
        assert found.labels == ("negative", "neutral", "positive")
        together = [
            (text, found.labels[number])
            for side in sides_of(found)
            for text, number in zip(side.inputs, side.targets, strict=True)
        ]
        assert dict(together) == dict(zip(texts, names, strict=True))
        assert len(together) == 300
        assert found.warnings == []
        assert found.recorded == {}

    def test_repeats_with_its_seed(self, tmp_path):
        path = tiny_dataset(tmp_path)
        assert read(path).hashes == read(path).hashes
        assert set(read(path).hashes) == {"train", "validation", "test"}
        assert read(path).hashes["test"] != read(path, seed=1).hashes["test"]

    def test_limit_caps_training_rows_only(self, tmp_path):
        path = tiny_dataset(tmp_path)
        whole, capped = read(path), read(path, SHARE.model_copy(update={"limit": 30}))
        assert len(capped.train) == 30
        assert np.bincount(capped.train.targets).tolist() == [10, 10, 10]
        assert capped.hashes["test"] == whole.hashes["test"]
        assert set(capped.train.inputs) <= set(whole.train.inputs)

    def test_duplicates_stay_together(self, tmp_path):
        texts, names = tiny_rows(100)
        path = parquet(
            tmp_path / "a.parquet", text=[*texts, *(f" {text.upper()} " for text in texts)], label=[*names, *names]
        )
        found = read(path)
        sides = [{normalise(text) for text in side.inputs} for side in sides_of(found)]
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
        assert sum(map(len, sides_of(found))) == 62
        assert (found.train.targets == -1).sum() == 2
        assert found.train.labelled.tolist() == (found.train.targets >= 0).tolist()
        assert found.validation.labelled.all()
        assert found.test.labelled.all()
        assert found.warnings == [("empty_text", "2 rows without a text were dropped")]

    def test_hardly_any_label(self, tmp_path):
        texts, names = tiny_rows(200)
        path = parquet(tmp_path / "a.parquet", text=texts, label=[*names[:12], *[None] * 188])
        found = read(path, SplitByShare(id="ds_1", validation=6, test=6))
        assert [len(side) for side in sides_of(found)] == [188, 6, 6]
        assert not found.train.labelled.any()
        assert found.warnings == []


class TestPairs:
    def test_no_pair_on_both_sides(self, tmp_path):
        table = pq.read_table(tiny_pairs(tmp_path, 60)).to_pydict()
        path = parquet(
            tmp_path / "a.parquet",
            text=[*table["text"], *(f"  {text.upper()}\n" for text in table["text"])],
            text_pair=[*table["text_pair"], *(text.replace(" ", "\t ") for text in table["text_pair"])],
            label=table["label"] * 2,
        )
        found = read(path, task=PAIRS)
        assert isinstance(found.train.inputs[0], Pair)
        sides = [{(normalise(one.text), normalise(one.text_pair)) for one in side.inputs} for side in sides_of(found)]
        assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
        assert [len(side) for side in sides_of(found)] == [84, 12, 24]

    def test_both_texts_are_needed(self, tmp_path):
        path = parquet(
            tmp_path / "a.parquet",
            text=["a", "b", "c", " ", "e", "f"],
            text_pair=["x", "x", None, "x", "x", "y"],
            label=[0, 1, 0, 1, 0, 1],
            part=["train", "train", "train", "train", "test", "validation"],
        )
        found = read(path, BY_COLUMN, task=PAIRS)
        assert found.train.inputs == [Pair("a", "x"), Pair("b", "x")]
        assert found.warnings == [("empty_text", "2 rows without a text were dropped")]

    def test_the_second_text_has_its_pointer(self, tmp_path):
        failure = refused(parquet(tmp_path / "a.parquet", text=["a"], text_pair=[1], label=["b"]), task=PAIRS)
        assert (failure.code, failure.pointer) == ("not_text", "/task/text_pair")
        failure = refused(parquet(tmp_path / "b.parquet", text=["a"], label=["b"]), task=PAIRS)
        assert (failure.code, failure.pointer) == ("missing_column", "/task/text_pair")


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
            ([["a", "b"]] * 1200, "bad_label"),
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
    def test_leaks_are_dropped_from_the_lesser_side(self, tmp_path):
        path = parquet(
            tmp_path / "a.parquet",
            text=["a1", "a2", "B1", "c1", "b1", "b2", "C1", "c1", "c2"],
            label=["x", "y", "x", "x", "x", "y", "x", "x", "y"],
            part=["train"] * 4 + ["validation"] * 3 + ["Test", "test "],
        )
        found = read(path, BY_COLUMN)
        assert [side.inputs for side in sides_of(found)] == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]
        assert [code for code, _ in found.warnings] == ["leaking_rows_dropped"] * 2
        assert any(message.startswith("2 training rows") for _, message in found.warnings)

    @pytest.mark.parametrize("strange", ["dev", None, 3])
    def test_other_words(self, tmp_path, strange):
        parts = ["1", "2", strange] if isinstance(strange, str) else [strange] * 3
        path = parquet(tmp_path / "a.parquet", text=["a", "b", "c"], label=["x", "y", "x"], part=parts)
        failure = refused(path, BY_COLUMN)
        assert (failure.code, failure.pointer) == ("bad_split_column", "/dataset/split")

    def test_a_side_without_rows(self, tmp_path):
        path = parquet(tmp_path / "a.parquet", text=["a", "b"], label=["x", "y"], part=["train", "test"])
        assert refused(path, BY_COLUMN).code == "too_few_rows"

    def test_unlabelled_test_rows(self, tmp_path):
        path = parquet(
            tmp_path / "a.parquet",
            text=["a", "b", "c", "d"],
            label=["x", "y", None, "x"],
            part=["train", "train", "test", "validation"],
        )
        assert refused(path, BY_COLUMN).code == "unlabelled_rows"

    def test_a_label_that_is_never_taught(self, tmp_path):
        path = parquet(
            tmp_path / "a.parquet",
            text=["a", "b", "c", "d"],
            label=["x", "y", "z", "x"],
            part=["train", "train", "test", "validation"],
        )
        found = read(path, BY_COLUMN)
        assert found.warnings == [("label_missing_in_train", "no training row has the label 'z'")]

    def test_no_training_row_has_a_label(self, tmp_path):
        path = parquet(
            tmp_path / "a.parquet",
            text=["a", "b", "c", "d"],
            label=[None, None, "x", "y"],
            part=["train", "train", "test", "validation"],
        )
        found = read(path, BY_COLUMN)
        assert found.train.targets.tolist() == [-1, -1]
        assert found.warnings == []


def three(tmp_path, columns_a, columns_b, columns_c, **options):
    columns = {"ds_a": columns_a, "ds_b": columns_b, "ds_c": columns_c}
    paths = {name: parquet(tmp_path / f"{name}.parquet", **one) for name, one in columns.items()}
    spec = SplitByDataset(train="ds_a", validation="ds_b", test="ds_c", limit=3)
    return KIND.read(spec, paths, seed=0, **options)


class TestThreeDatasets:
    def test_each_is_its_side(self, tmp_path):
        found = three(
            tmp_path,
            {"text": ["a1", "a2", "a3", "a4", "c1"], "label": [0, 1, 0, 1, 0]},
            {"text": ["b1", "b2"], "label": ["0", "1"]},
            {"text": ["c1"], "label": [1]},
        )
        assert len(found.train) == 3
        assert "c1" not in found.train.inputs
        assert found.validation.inputs == ["b1", "b2"]
        assert found.labels == ("0", "1")
        assert found.test.targets.tolist() == [1]

    def test_recorded_in_one_of_them(self, tmp_path):
        found = three(
            tmp_path,
            {"text": ["a1", "a2"], "label": [0, 1], "z": [[1.0, 2], None]},
            {"text": ["b1"], "label": [0], "z": [None]},
            {"text": ["c1"], "label": [1], "z": ["[3, 4]"]},
            recorded=["z"],
        )
        assert found.recorded["z"]["test"].tolist() == [[3, 4]]
        assert np.isnan(found.recorded["z"]["validation"]).tolist() == [[True, True]]

    def test_recorded_in_different_widths(self, tmp_path):
        with pytest.raises(JobFailure, match="2 and 3 numbers") as caught:
            three(
                tmp_path,
                {"text": ["a1", "a2"], "label": [0, 1], "z": [[1.0, 2], None]},
                {"text": ["b1"], "label": [0], "z": [None]},
                {"text": ["c1"], "label": [1], "z": [[3.0, 4, 5]]},
                recorded=["z"],
            )
        assert caught.value.code == "bad_recorded"


class TestRecorded:
    @pytest.mark.parametrize("spell", [list, str], ids=["lists", "JSON"])
    def test_rows_keep_their_own(self, tmp_path, spell):
        texts, names = tiny_rows(60)
        values = [None if row % 7 == 0 else spell([row, -row, 0.5]) for row in range(60)]
        path = parquet(tmp_path / "a.parquet", text=[*texts, " "], label=[*names, None], z=[*values, None])
        found = read(path, recorded=["z"])
        for part, side in zip(("train", "validation", "test"), sides_of(found), strict=True):
            answers = found.recorded["z"][part]
            assert answers.dtype == np.float32
            for text, answer in zip(side.inputs, answers, strict=True):
                row = texts.index(text)
                assert np.isnan(answer).all() if row % 7 == 0 else answer.tolist() == [row, -row, 0.5]

    @pytest.mark.parametrize(
        "values",
        [
            [[1.0, 2.0], [1.0]],
            [[1.0, 2.0], [None, 1.0]],
            [[1.0, 2.0], [float("nan"), 1.0]],
            [[1.0, 2.0], [1e300, 1.0]],
            [["a", "b"], ["c", "d"]],
            [[True, False], [True, True]],
            [[], []],
            [None, None],
            [1.0, 2.0],
            ["[1, 2]", "{}"],
            ["[1, 2]", "[1, 2"],
            ["[1, 2]", "[1, NaN]"],
            ["[1, 2]", '[1, "2"]'],
            ["[1, 2]", "[1, 1" + "0" * 400 + "]"],
            ["[1, 2]", "[" * 100_000],
        ],
    )
    def test_refused(self, tmp_path, values):
        path = parquet(tmp_path / "a.parquet", text=["a", "b"], label=["x", "y"], z=values)
        failure = refused(path, recorded=["z"])
        assert (failure.code, failure.pointer) == ("bad_recorded", "/teachers")

    def test_missing(self, tmp_path):
        failure = refused(tiny_dataset(tmp_path), recorded=["z"])
        assert (failure.code, failure.pointer) == ("missing_column", "/teachers")


class TestEncode:
    def test_as_transformers_would(self, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher(tmp_path))
        texts = [*tiny_rows(50)[0], "word " * 60, "x"]
        found = KIND.encode(tokenizer, texts)
        expected = tokenizer(texts, truncation=True, max_length=16)["input_ids"]
        assert [row.tolist() for row in found.ids] == expected
        assert found.lengths.tolist() == [len(row) for row in expected]
        assert (found.types, found.rows, found.places) == (None, None, None)

    def test_pairs(self, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher(tmp_path))
        found = TextClassificationKind(PAIRS).encode(tokenizer, [Pair("good film", "bad food")])
        expected = tokenizer("good film", "bad food", return_token_type_ids=True)
        assert found.ids[0].tolist() == expected["input_ids"]
        assert found.types[0].tolist() == expected["token_type_ids"]

    def test_targets_are_those_of_the_rows(self):
        assert KIND.targets(labelled(1, -1, 0), NOTHING).tolist() == [1, -1, 0]


answers_and_truth = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=30)


class TestScores:
    def test_rows_without_a_label_do_not_count(self):
        found = KIND.scores(np.array([0, 1, 1, 0]), labelled(0, 1, 0, -1))
        assert found["accuracy"] == pytest.approx(2 / 3)
        assert found["macro_f1"] == pytest.approx(2 / 3)

    def test_against_scikit_learn(self):
        random = np.random.default_rng(0)
        answers, targets = random.integers(0, 4, 200), random.integers(0, 4, 200)
        found = KIND.scores(answers, labelled(*targets))
        assert found["macro_f1"] == f1_score(targets, answers, average="macro")
        assert found["matthews"] == matthews_corrcoef(targets, answers)

    def test_no_label_at_all(self):
        with pytest.raises(ValueError, match="no row has a label"):
            KIND.scores(np.zeros(2, np.int64), labelled(-1, -1))

    @given(answers_and_truth)
    def test_metric_of_statistics_is_the_primary_score(self, rows):
        answers, targets = np.array(rows).T
        split = labelled(*targets)
        sums = KIND.statistics(answers, split).sum(axis=0)
        assert KIND.metric(sums) == pytest.approx(KIND.scores(answers, split)[KIND.primary])
        assert KIND.right(answers, split).mean() == pytest.approx(KIND.metric(sums))
        assert KIND.metric(np.zeros((3, 2))).tolist() == [0, 0, 0]

    def test_an_answer_that_is_not_known_is_wrong(self):
        logits = np.array([[0, 1], [np.nan, np.nan], [2, 1]], np.float32)
        found = KIND.predictions(Answers.whole(logits), NOTHING, ["a", "b", "c"])
        assert found.tolist() == [1, -1, 0]
        split = labelled(1, 0, -1)
        assert KIND.right(found, split).tolist() == [True, False, False]
        assert KIND.same(found, found).tolist() == [True, False, True]
        assert KIND.scores(found, split)["accuracy"] == 0.5
        assert KIND.shown(found, 1, ("x", "y")) == {"label": None}

    def test_constant_and_chance(self):
        split = labelled(2, 1, 2, -1)
        assert KIND.constant(split, "abc")["accuracy"] == pytest.approx(2 / 3)
        assert KIND.constant(labelled(-1), "abc") is None
        assert KIND.chance(split, "abcd") == 0.25

    def test_label_by_label(self):
        found = KIND.per_class(np.array([0, 1, 1, 2]), labelled(0, 1, 0, -1), ("a", "b", "c"))
        assert found[0] == {"label": "a", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
        assert found[2] == {"label": "c", "precision": 0, "recall": 0, "f1": 0, "support": 0}
        assert KIND.per_class(np.array([0]), labelled(-1), ("a", "b"))[1]["support"] == 0

    def test_as_json(self):
        assert KIND.shown(np.array([1]), 0, ("a", "b")) == {"label": "b"}
        assert KIND.truth(labelled(0, -1), 0, ("a", "b")) == {"label": "a"}
        assert KIND.truth(labelled(0, -1), 1, ("a", "b")) is None


def test_what_is_shown_decides_the_template():
    # Signals that were stored under this template are still good.
    assert KIND.template() == "text-classification/1 max_length=16"
    others = [TASK.model_copy(update=one) for one in ({"max_length": 32}, {"text_pair": "b"}, {"multi_label": True})]
    assert len({for_task(one).template() for one in (TASK, *others)}) == 4
