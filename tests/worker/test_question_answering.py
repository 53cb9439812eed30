"""`worker.tasks.question_answering`: reading answers, windows that cut them, and SQuAD's scores."""

import json

import numpy as np
import pytest
from transformers import BertTokenizer

from models.errors import JobFailure
from models.inputs import Question
from models.specs import QuestionAnswering, SplitByColumn, SplitByShare
from tests.factories import parquet, tiny_questions_dataset, tiny_tokenizer
from worker.data import Answers
from worker.tasks.base import Split
from worker.tasks.question_answering import QuestionAnsweringKind

SHARE = SplitByShare(id="ds_1", validation=4, test=8)
CONTEXTS = [f"film {row} was good" for row in range(30)]
GOOD = [{"text": ["good"], "answer_start": [context.index("good")]} for context in CONTEXTS]
NONE = {"text": [], "answer_start": []}


@pytest.fixture
def kind():
    columns = {"question": "question", "context": "context", "answers": "answers"}
    return QuestionAnsweringKind(QuestionAnswering(kind="question-answering", **columns, max_length=16, stride=4))


@pytest.fixture
def tokenizer():
    return BertTokenizer(tokenizer_object=tiny_tokenizer())


def write(tmp_path, answers, contexts=CONTEXTS, **more):
    return parquet(
        tmp_path / "a.parquet", question=["is it"] * len(contexts), context=contexts, answers=answers, **more
    )


def read(kind, path, dataset=SHARE):
    return kind.read(dataset, {"ds_1": path}, seed=0)


def one_row(context, *answers):
    """A row whose answers are the given parts of `context`."""
    return Split(
        [Question("is it", context)], [tuple((text, context.index(text)) for text in answers)], np.ones(1, bool)
    )


def logits_of(targets, encoded):
    parts = [np.zeros((len(places), 2), np.float32) for places in encoded.places]
    for part, (first, last) in zip(parts, targets.tolist(), strict=True):
        part[first, 0] = part[last, 1] = 9
    return Answers.of(parts, 2)


def predicted(kind, tokenizer, split):
    encoded = kind.encode(tokenizer, split.inputs)
    return kind.predictions(logits_of(kind.targets(split, encoded), encoded), encoded, split.inputs)


class TestReading:
    def test_learnable_rows(self, kind, tmp_path):
        data = read(kind, tiny_questions_dataset(tmp_path, 60))
        assert (len(data.train), len(data.validation), len(data.test)) == (48, 4, 8)
        assert (data.labels, data.warnings, kind.width) == ((), [], 2)
        assert {bool(truth) for truth in data.test.targets} == {True, False}
        for item, truth in zip(data.train.inputs, data.train.targets, strict=True):
            assert all(item.context.startswith(text, start) for text, start in truth)
        assert kind.serving() == {"limbeck_stride": 4, "limbeck_allow_none": True}

    def test_json_text_is_the_same_as_structs(self, kind, tmp_path):
        structs = read(kind, write(tmp_path, GOOD))
        texts = read(kind, write(tmp_path, [json.dumps(one) for one in GOOD]))
        assert structs.hashes == texts.hashes
        assert not kind.serving()["limbeck_allow_none"]
        assert kind.constant(texts.test, ()) is None
        assert kind.chance(texts.test, ()) == 0

    def test_questions_of_one_context_stay_together(self, kind, tmp_path):
        contexts = [CONTEXTS[row // 3] for row in range(30)]
        questions = [f"question {row}" for row in range(30)]
        answers = [GOOD[row // 3] for row in range(30)]
        path = parquet(tmp_path / "b.parquet", question=questions, context=contexts, answers=answers)
        data = read(kind, path)
        sides = [{item.context for item in side.inputs} for side in (data.train, data.validation, data.test)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 10

    def test_rows_that_nobody_looked_at(self, kind, tmp_path):
        data = read(kind, write(tmp_path, [None, *GOOD[1:]]))
        assert data.train.labelled.tolist() == [False, *[True] * (len(data.train) - 1)]
        assert kind.truth(data.train, 0, ()) is None
        assert kind.truth(data.train, 1, ()) == {"answers": ["good"]}

    def test_a_slip_is_dropped(self, kind, tmp_path):
        data = read(kind, write(tmp_path, [{"text": ["good"], "answer_start": [0]}, *GOOD[1:]]))
        assert [code for code, _ in data.warnings] == ["answer_not_found"]
        assert len(data.train) + len(data.validation) + len(data.test) == len(GOOD) - 1

    def test_rows_without_a_context_are_dropped(self, kind, tmp_path):
        data = read(kind, write(tmp_path, GOOD, contexts=[" ", *CONTEXTS[1:]]))
        assert data.warnings == [("empty_text", "1 rows without a question and a context were dropped")]

    @pytest.mark.parametrize(
        "answers",
        [
            ["good"] * 30,
            [7] * 30,
            [None] * 30,
            [NONE] * 30,
            [{"text": "good", "answer_start": 4}] * 30,
            [{"text": ["good"], "answer_start": [1, 2]}] * 30,
            [{"text": [""], "answer_start": [0]}] * 30,
            [{"text": [" "], "answer_start": [4]}] * 30,
            [{"text": ["good"], "answer_start": [-1]}] * 30,
            ['{"text": ["ilm"], "answer_start": [true]}'] * 30,
            [{"text": ["good"], "answer_start": [0]}] * 2 + GOOD[2:],
        ],
    )
    def test_bad_answers(self, kind, tmp_path, answers):
        with pytest.raises(JobFailure) as caught:
            read(kind, write(tmp_path, answers))
        assert (caught.value.code, caught.value.pointer) == ("bad_answer", "/task/answers")
        assert caught.value.hint

    def test_not_text(self, kind, tmp_path):
        with pytest.raises(JobFailure) as caught:
            read(kind, write(tmp_path, GOOD, contexts=list(range(30))))
        assert (caught.value.code, caught.value.pointer) == ("not_text", "/task/context")

    def test_test_rows_need_an_answer(self, kind, tmp_path):
        path = write(tmp_path, [None, *GOOD[1:]], part=["test", "validation", *["train"] * 28])
        with pytest.raises(JobFailure) as caught:
            read(kind, path, SplitByColumn(id="ds_1", split="part"))
        assert caught.value.code == "unlabelled_rows"


class TestRoundTrip:
    def test_targets_give_the_answers(self, kind, tokenizer, tmp_path):
        data = read(kind, tiny_questions_dataset(tmp_path, 40))
        found = predicted(kind, tokenizer, data.train)
        assert found == [truth[0][0] if truth else "" for truth in data.train.targets]
        assert kind.scores(found, data.train) == {"f1": 1, "exact_match": 1}

    def test_a_window_that_cuts_the_answer_has_none(self, kind, tokenizer):
        # 16 tokens less 5 leave 11 of the context for a window, of which the next repeats 4.
        context = "the day was just a film about my good great lovely service and some food"
        split = one_row(context, "good great lovely service")
        encoded = kind.encode(tokenizer, split.inputs)
        assert encoded.rows.tolist() == [0, 0]
        # The first window ends with "lovely"; the second begins with "good".
        assert [len(places) for places in encoded.places] == [12, 12 - 3]
        assert kind.targets(split, encoded).tolist()[0] == [0, 0]
        first, last = kind.targets(split, encoded).tolist()[1]
        assert context[encoded.offsets[1][first][0] : encoded.offsets[1][last][1]] == "good great lovely service"
        assert predicted(kind, tokenizer, split) == ["good great lovely service"]

    @pytest.mark.parametrize(
        ("context", "answer"),
        [
            ("the 🙂 was Café good", "Café"),
            ("the ﬁlm\u200b was good", "ﬁlm\u200b was"),
            ("日本 food", "本"),
            ("it was  good ", "  good "),
            ("film\u200b", "film\u200b"),
        ],
    )
    def test_characters_are_counted(self, kind, tokenizer, context, answer):
        split = one_row(context, answer)
        assert kind.targets(split, kind.encode(tokenizer, split.inputs)).min() > 0
        (found,) = predicted(kind, tokenizer, split)
        assert found in answer
        assert found.strip("\u200b") == answer.strip(" \u200b")

    def test_the_first_of_several_answers_is_learned(self, kind, tokenizer):
        assert predicted(kind, tokenizer, one_row("it was just good", "good", "just good")) == ["good"]

    def test_rows_without_a_label(self, kind, tokenizer):
        split = Split([Question("is it", "good"), Question("is it", "bad")], [None, ()], np.array([False, True]))
        encoded = kind.encode(tokenizer, split.inputs)
        assert kind.targets(split, encoded).tolist() == [[-1, -1], [0, 0]]

    @pytest.mark.parametrize(("answers", "expected"), [([*GOOD[1:], NONE], ""), (GOOD, "good")])
    def test_whether_no_answer_is_one(self, kind, tokenizer, tmp_path, answers, expected):
        read(kind, write(tmp_path, answers, contexts=[*CONTEXTS[1:], CONTEXTS[0]] if NONE in answers else CONTEXTS))
        split = one_row("it was good", "good")
        encoded = kind.encode(tokenizer, split.inputs)
        logits = logits_of(np.array([[0, 0]]), encoded)
        logits.values[3] = 1
        assert kind.predictions(logits, encoded, split.inputs) == [expected]

    def test_what_test_rows_say_is_not_learned(self, kind, tmp_path):
        parts = ["train"] * 20 + ["validation"] * 5 + ["test"] * 5
        answers = [*GOOD[:25], *[NONE] * 5]
        path = write(tmp_path, answers, part=parts)
        read(kind, path, SplitByColumn(id="ds_1", split="part"))
        assert kind.serving()["limbeck_allow_none"] is False
        read(kind, write(tmp_path, [NONE, *GOOD[1:]], part=parts), SplitByColumn(id="ds_1", split="part"))
        assert kind.serving()["limbeck_allow_none"] is True


class TestScores:
    @pytest.mark.parametrize(
        ("answer", "truth", "f1", "exact"),
        [
            ("The good, film!", ["good film"], 1, 1),
            ("good", ["a good film"], 2 / 3, 0),
            ("good good", ["good film"], 0.5, 0),
            ("bad", ["good"], 0, 0),
            ("good film", ["bad", "good film day", "film"], 0.8, 0),
            ("", [], 1, 1),
            ("good", [], 0, 0),
            ("", ["good"], 0, 0),
            ("U.S.", ["us"], 1, 1),
            ("theatre", ["atre"], 0, 0),
        ],
    )
    def test_as_in_squad(self, kind, answer, truth, f1, exact):
        split = Split([Question("q", "c")], [tuple((text, 0) for text in truth)], np.ones(1, bool))
        assert kind.scores([answer], split) == {"f1": pytest.approx(f1), "exact_match": exact}
        assert kind.right([answer], split).tolist() == [bool(exact)]
        assert kind.metric(kind.statistics([answer], split).sum(axis=0)) == pytest.approx(f1)

    def test_over_rows(self, kind):
        inputs = [Question("q", "c")] * 3
        split = Split(inputs, [(("good film", 0),), (), None], np.array([True, True, False]))
        found = ["good", "", "bad"]
        assert kind.scores(found, split) == {"f1": pytest.approx((2 / 3 + 1) / 2), "exact_match": 0.5}
        assert kind.right(found, split).tolist() == [False, True, False]
        assert kind.same(found, ["The good", "day", "bad"]).tolist() == [True, False, True]
        assert kind.shown(found, 1, ()) == {"answer": ""}
        assert kind.metric(np.zeros((2, 2))).tolist() == [0, 0]
        with pytest.raises(ValueError, match="no row"):
            kind.scores(found, Split(inputs, [None] * 3, np.zeros(3, bool)))

    def test_a_blind_guess_is_that_there_is_no_answer(self, kind, tmp_path):
        data = read(kind, tiny_questions_dataset(tmp_path, 40))
        share = sum(not truth for truth in data.test.targets) / len(data.test)
        assert kind.constant(data.test, ()) == {"f1": share, "exact_match": share}
        assert kind.chance(data.test, ()) == share > 0
