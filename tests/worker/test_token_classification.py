"""`worker.tasks.token_classification`: reading tags, what is learned from them, and scoring entities."""

import json

import numpy as np
import pytest
from transformers import BertTokenizer

from models.errors import JobFailure
from models.inputs import Words
from models.specs import SplitByColumn, SplitByShare, TokenClassification
from tests.factories import parquet, tiny_tokenizer, tiny_tokens_dataset
from worker.data import Answers
from worker.tasks.base import Split
from worker.tasks.text_classification import MAX_LABELS
from worker.tasks.token_classification import TokenClassificationKind

SHARE = SplitByShare(id="ds_1", validation=4, test=6)
WORDS = [["good", f"day{row}"] for row in range(20)]
TAGS = [["B-x", "O"]] * 20
MANY = [f"tag{number}" for number in range(MAX_LABELS + 1)]


@pytest.fixture
def kind():
    return TokenClassificationKind(
        TokenClassification(kind="token-classification", tokens="tokens", tags="tags", max_length=32)
    )


def read(kind, path, dataset=SHARE):
    return kind.read(dataset, {"ds_1": path}, seed=0)


def judged(kind, tmp_path, true):
    """Rows with the tags `true` as the test side of a dataset whose training rows have tags of all kinds."""
    every = ["O", "B-x", "I-x", "B-y", "I-y"]
    rows = [every, ["O"], *true]
    words = [[f"w{number}" for number in range(len(tags))] for tags in rows]
    words = [[f"r{row}", *one[1:]] for row, one in enumerate(words)]
    parts = ["train", "validation"] + ["test"] * len(true)
    path = parquet(tmp_path / "judged.parquet", tokens=words, tags=rows, part=parts)
    data = read(kind, path, SplitByColumn(id="ds_1", split="part"))
    return data.test, {**{name: number for number, name in enumerate(data.labels)}, "-": -1}


def answered(numbers, *rows):
    return [np.array([numbers[tag] for tag in row.split()]) for row in rows]


class TestReading:
    def test_learnable_rows(self, kind, tmp_path):
        data = read(kind, tiny_tokens_dataset(tmp_path, 60))
        assert data.labels == ("O", "B-bad", "B-good", "I-bad", "I-good")
        assert (len(data.train), len(data.validation), len(data.test)) == (50, 4, 6)
        assert all(isinstance(item, Words) for item in data.train.inputs)
        assert [len(tags) for tags in data.train.targets] == [len(item.words) for item in data.train.inputs]
        # Drawn evenly: rows with an entity and rows without on each side.
        assert {bool(tags.any()) for tags in data.test.targets} == {True, False}
        assert data.warnings == []

    def test_json_text_is_the_same_as_lists(self, kind, tmp_path):
        lists = read(kind, parquet(tmp_path / "a.parquet", tokens=WORDS, tags=TAGS))
        texts = read(
            kind, parquet(tmp_path / "b.parquet", tokens=[*map(json.dumps, WORDS)], tags=[*map(json.dumps, TAGS)])
        )
        assert lists.hashes == texts.hashes

    def test_rows_without_tags_are_for_training(self, kind, tmp_path):
        data = read(kind, parquet(tmp_path / "a.parquet", tokens=WORDS, tags=[None, None, *TAGS[2:]]))
        assert data.train.labelled.sum() == len(data.train) - 2
        assert kind.truth(data.train, 0, data.labels) is None
        assert data.train.targets[0].tolist() == [-1, -1]
        assert data.test.labelled.all()

    def test_rows_without_words_are_dropped(self, kind, tmp_path):
        path = parquet(
            tmp_path / "a.parquet", tokens=[[], None, [" ", ""], *WORDS], tags=[[], ["O"], ["O", "O"], *TAGS]
        )
        data = read(kind, path)
        assert data.warnings == [("empty_text", "3 rows without words were dropped")]

    def test_a_tag_that_is_not_taught(self, kind, tmp_path):
        parts = ["validation", "test", *["train"] * 18]
        path = parquet(tmp_path / "a.parquet", tokens=WORDS, tags=[["B-y", ""], *TAGS[1:]], part=parts)
        data = read(kind, path, SplitByColumn(id="ds_1", split="part"))
        assert [code for code, _ in data.warnings] == ["label_missing_in_train"]
        assert kind.truth(data.validation, 0, data.labels) == ["B-y", "O"]

    @pytest.mark.parametrize(
        ("tokens", "tags", "code", "pointer"),
        [
            (["a b"] * 20, TAGS, "not_words", "/task/tokens"),
            (['{"a": 1}'] * 20, TAGS, "not_words", "/task/tokens"),
            ([1] * 20, TAGS, "not_words", "/task/tokens"),
            ([["a", None]] * 20, TAGS, "not_words", "/task/tokens"),
            (WORDS, [[0, 1]] * 20, "bad_tags", "/task/tags"),
            (WORDS, ["O O"] * 20, "bad_tags", "/task/tags"),
            (WORDS, [["O"]] * 20, "bad_tags", "/task/tags"),
            (WORDS, [["O", "O"]] * 20, "one_label_only", "/task/tags"),
            (WORDS, [None] * 20, "one_label_only", "/task/tags"),
            ([MANY] * 20, [MANY] * 20, "too_many_labels", "/task/tags"),
        ],
    )
    def test_refused(self, kind, tmp_path, tokens, tags, code, pointer):
        path = parquet(tmp_path / "a.parquet", tokens=tokens, tags=tags)
        with pytest.raises(JobFailure) as caught:
            read(kind, path)
        assert (caught.value.code, caught.value.pointer) == (code, pointer)
        assert caught.value.hint


class TestScores:
    def test_by_hand(self, kind, tmp_path):
        test, numbers = judged(kind, tmp_path, [["B-x", "I-x", "O", "B-y"], ["B-x", "B-x", "O"], ["O"]])
        found = answered(numbers, "B-x I-x O B-x", "I-x B-x I-x", "O")
        # True: x0-2, y3-4 · x0-1, x1-2. Found: x0-2, x3-4 · x0-1, x1-3. Two of four are right.
        scores = kind.scores(found, test)
        assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 5 / 8}
        sums = kind.statistics(found, test).sum(axis=0)
        assert sums.tolist() == [2, 4, 4]
        assert kind.metric(sums) == scores[kind.primary]
        assert kind.metric(np.zeros((2, 3))).tolist() == [0, 0]
        assert kind.right(found, test).tolist() == [False, False, True]
        assert kind.same(found, test.targets).tolist() == [False, False, True]
        x, y = kind.per_class(found, test, [])
        assert x == {"label": "x", "precision": 0.5, "recall": 2 / 3, "f1": 4 / 7, "support": 3}
        assert y == {"label": "y", "precision": 0, "recall": 0, "f1": 0, "support": 1}

    def test_a_word_that_was_cut_off_is_wrong(self, kind, tmp_path):
        test, numbers = judged(kind, tmp_path, [["B-x", "O", "B-x"]])
        found = answered(numbers, "B-x O -")
        assert kind.scores(found, test) == {
            "f1": pytest.approx(2 / 3),
            "precision": 1,
            "recall": 0.5,
            "accuracy": pytest.approx(2 / 3),
        }
        assert kind.shown(found, 0, list(numbers)) == ["B-x", "O", None]

    def test_only_rows_with_tags_count(self, kind, tmp_path):
        test, numbers = judged(kind, tmp_path, [["B-x"], ["B-y"]])
        half = Split(test.inputs, [test.targets[0], np.array([-1])], np.array([True, False]))
        found = answered(numbers, "B-x", "B-x")
        assert kind.scores(found, half)["precision"] == 1
        assert kind.right(found, half).tolist() == [True, False]
        with pytest.raises(ValueError, match="no row"):
            kind.scores(found, Split(test.inputs, test.targets, np.zeros(2, np.bool_)))


class TestRoundTrip:
    def test_logits_of_the_targets_give_the_tags(self, kind, tmp_path):
        data = read(kind, tiny_tokens_dataset(tmp_path, 40))
        encoded = kind.encode(BertTokenizer(tokenizer_object=tiny_tokenizer()), data.train.inputs)
        targets = kind.targets(data.train, encoded).numpy()
        assert targets.shape == (len(data.train), max(len(item.words) for item in data.train.inputs))
        assert all((row[len(tags) :] == -1).all() for row, tags in zip(targets, data.train.targets, strict=True))
        eye = np.eye(len(data.labels), dtype=np.float32)
        parts = [eye[row[: len(places)]] for row, places in zip(targets, encoded.places, strict=True)]
        found = kind.predictions(Answers.of(parts, len(data.labels)), encoded, data.train.inputs)
        assert all(np.array_equal(one, two) for one, two in zip(found, data.train.targets, strict=True))
        assert kind.scores(found, data.train)["f1"] == 1

    def test_words_that_do_not_fit(self, kind, tmp_path):
        long = [["good", *["day"] * 39]]
        test, _ = judged(kind, tmp_path, [["O"] * 40])
        rows = Split([Words(tuple(long[0]))], [np.array([1, *[0] * 39])], np.ones(1, np.bool_))
        encoded = kind.encode(BertTokenizer(tokenizer_object=tiny_tokenizer()), rows.inputs)
        (targets,) = kind.targets(rows, encoded).tolist()
        assert targets == [1, *[0] * 29, *[-1] * 10]
        logits = np.zeros((40, 5), np.float32)
        logits[0, 1] = 1
        logits[30:] = np.nan
        (found,) = kind.predictions(Answers.of([logits], 5), encoded, rows.inputs)
        assert found.tolist() == targets
        assert kind.scores([found], test)["accuracy"] == 29 / 40
