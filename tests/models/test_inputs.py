"""How texts, pairs, words and questions become tokens, and which tokens are asked."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, processors

from models.inputs import Input, Pair, Question, Words, as_json, encode, of_json, places, separate_words
from tests.factories import tiny_rows, tiny_tokenizer

TEXTS = tiny_rows(8)[0]
CONTEXT = " ".join(tiny_rows(6, seed=3)[0])


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def byte_level(*, nested: bool = False) -> Tokenizer:
    """A tokenizer of RoBERTa's kind, one token for each byte, without a space before the first word."""
    vocabulary = {token: at for at, token in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocabulary, []))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), whole]) if nested else whole
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return made


def one(tokenizer: Tokenizer, item: Input, max_length: int = 16) -> Encoding:
    [[encoding]] = encode(tokenizer, [item], max_length=max_length)
    return encoding


def tokens(tokenizer: Tokenizer, encoding: Encoding) -> list[str | None]:
    return [tokenizer.id_to_token(number) for number in encoding.ids]


class TestTexts:
    def test_special_tokens_and_no_padding(self, tokenizer: Tokenizer) -> None:
        tokenizer.enable_padding(length=64)
        assert tokens(tokenizer, one(tokenizer, "good day")) == ["[CLS]", "good", "day", "[SEP]"]

    def test_a_pair(self, tokenizer: Tokenizer) -> None:
        encoding = one(tokenizer, Pair("good day", "bad"))
        assert tokens(tokenizer, encoding) == ["[CLS]", "good", "day", "[SEP]", "bad", "[SEP]"]
        assert encoding.type_ids == [0, 0, 0, 0, 1, 1]

    def test_nothing(self, tokenizer: Tokenizer) -> None:
        assert tokens(tokenizer, one(tokenizer, "")) == ["[CLS]", "[SEP]"]
        assert tokens(tokenizer, one(tokenizer, Pair("", ""))) == ["[CLS]", "[SEP]", "[SEP]"]
        assert one(tokenizer, Words(())).tokens == ["[CLS]", "[SEP]"]
        assert encode(tokenizer, [], max_length=16) == []

    def test_the_longer_side_is_cut_first(self, tokenizer: Tokenizer) -> None:
        encoding = one(tokenizer, Pair("good " * 50, "bad day"), max_length=10)
        assert tokens(tokenizer, encoding) == ["[CLS]", *["good"] * 5, "[SEP]", "bad", "day", "[SEP]"]

    def test_one_encoding_each_in_order(self, tokenizer: Tokenizer) -> None:
        found = encode(tokenizer, TEXTS, max_length=12)
        assert [windows[0].ids for windows in found] == [one(tokenizer, text, max_length=12).ids for text in TEXTS]
        assert {len(windows) for windows in found} == {1}

    def test_offsets_where_asked(self, tokenizer: Tokenizer) -> None:
        [[encoding]] = encode(tokenizer, ["so good"], max_length=16, offsets=True)
        assert encoding.offsets[1:3] == [(0, 2), (3, 7)]

    def test_a_shared_tokenizer_is_left_as_it_is(self, tokenizer: Tokenizer) -> None:
        encode(tokenizer, ["a"], max_length=12)
        before = tokenizer.to_str()
        encode(tokenizer, [Pair("a", "b")], max_length=12)
        encode(tokenizer, ["a"], max_length=12, offsets=True)
        assert tokenizer.to_str() == before

    def test_a_text_as_a_whole_has_no_places(self, tokenizer: Tokenizer) -> None:
        assert places("a", one(tokenizer, "a")) is None
        assert places(Pair("a", "b"), one(tokenizer, Pair("a", "b"))) is None


class TestWords:
    def test_the_first_token_of_each(self, tokenizer: Tokenizer) -> None:
        item = Words(("goods", "day", "monday,", "so"))
        encoding = one(tokenizer, item)
        assert encoding.tokens == ["[CLS]", "good", "##s", "day", "monday", ",", "so", "[SEP]"]
        found = places(item, encoding)
        assert found is not None
        assert found.dtype == np.int32
        assert found.tolist() == [1, 3, 4, 6]

    def test_words_that_were_cut_off_or_have_no_token(self, tokenizer: Tokenizer) -> None:
        item = Words(("good", "", "day", "so", "bad"))
        found = places(item, one(tokenizer, item, max_length=4))
        assert found is not None
        assert found.tolist() == [1, -1, 2, -1, -1]

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_byte_level_tokenizer_reads_them_as_after_a_space(self, nested: bool) -> None:
        tokenizer = byte_level(nested=nested)
        item = Words(("ab", "c"))
        encoding = one(tokenizer, item)
        assert encoding.tokens == ["<s>", "Ġ", "a", "b", "Ġ", "c", "</s>"]
        found = places(item, encoding)
        assert found is not None
        assert found.tolist() == [1, 4]

    def test_a_text_is_read_like_its_words(self) -> None:
        tokenizer = byte_level()
        separate_words(tokenizer)
        [[encoding]] = encode(tokenizer, ["ab c"], max_length=16, offsets=True)
        assert encoding.ids == one(tokenizer, Words(("ab", "c"))).ids
        assert [encoding.offsets[at] for at in (2, 3, 5)] == [(0, 1), (1, 2), (3, 4)]


class TestQuestions:
    def test_windows_share_the_stride_and_show_everything(self, tokenizer: Tokenizer) -> None:
        item = Question("is it good", CONTEXT)
        [windows] = encode(tokenizer, [item], max_length=20, stride=5)
        assert len(windows) > 2
        shown = [[window.offsets[at] for at in _context(item, window)] for window in windows]
        for before, after in pairwise(shown):
            assert before[-5:] == after[:5]
        assert {offset for window in shown for offset in window} == set(_all(tokenizer, CONTEXT))
        for window in windows:
            assert window.tokens[:5] == ["[CLS]", "is", "it", "good", "[SEP]"]
            assert len(window.ids) <= 20

    def test_places_are_the_first_token_and_the_contexts(self, tokenizer: Tokenizer) -> None:
        item = Question("good", "bad day")
        [[window]] = encode(tokenizer, [item], max_length=20, stride=5)
        found = places(item, window)
        assert found is not None
        assert found.tolist() == [0, 3, 4]

    def test_no_context(self, tokenizer: Tokenizer) -> None:
        item = Question("good", "")
        [[window]] = encode(tokenizer, [item], max_length=20, stride=5)
        found = places(item, window)
        assert found is not None
        assert found.tolist() == [0]

    def test_a_long_question_is_cut_to_half_of_the_room(self, tokenizer: Tokenizer) -> None:
        item = Question("good " * 40, CONTEXT)
        [windows] = encode(tokenizer, [item], max_length=19, stride=9)
        assert {window.tokens.count("good") - _inside(window, item).count("good") for window in windows} == {8}
        shown = {window.offsets[at] for window in windows for at in _context(item, window)}
        assert shown == set(_all(tokenizer, CONTEXT))

    def test_each_is_cut_as_if_alone(self, tokenizer: Tokenizer) -> None:
        items = [Question("good " * count, CONTEXT) for count in (1, 9, 3, 40, 0)]
        together = encode(tokenizer, items, max_length=24, stride=12)
        for item, windows in zip(items, together, strict=True):
            [alone] = encode(tokenizer, [item], max_length=24, stride=12)
            assert [window.ids for window in windows] == [window.ids for window in alone]

    @settings(max_examples=60, deadline=None)
    @given(
        question=st.text(max_size=60),
        context=st.text(max_size=120),
        max_length=st.integers(8, 24),
        stride=st.integers(0, 12),
        kind=st.sampled_from([tiny_tokenizer, byte_level]),
    )
    def test_any_question_has_windows_that_fit(
        self, question: str, context: str, max_length: int, stride: int, kind: Callable[[], Tokenizer]
    ) -> None:
        tokenizer = kind()
        [windows] = encode(tokenizer, [Question(question, context)], max_length=max_length, stride=stride)
        assert all(len(window.ids) <= max_length for window in windows)
        seen = {window.ids[at] for window in windows for at in _context(Question(question, context), window)}
        tokenizer.no_truncation()
        assert seen == set(tokenizer.encode(context, add_special_tokens=False).ids)


@pytest.mark.parametrize("item", ["a", Pair("a", "b"), Question("a", "b")])
def test_as_json_and_back(item: Input) -> None:
    assert of_json(as_json(item)) == item


def test_words_are_a_text_to_others() -> None:
    assert as_json(Words(("a", "b"))) == "a b"
    with pytest.raises(ValueError, match="no input"):
        of_json(["a", "b"])


def _context(item: Question, window: Encoding) -> list[int]:
    found = places(item, window)
    assert found is not None
    return [int(at) for at in found[1:]]


def _inside(window: Encoding, item: Question) -> list[str]:
    return [window.tokens[at] for at in _context(item, window)]


def _all(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    tokenizer.no_truncation()
    return list(tokenizer.encode(text, add_special_tokens=False).offsets)
