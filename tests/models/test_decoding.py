"""`models.decoding`: entities of tags and logits, and stretches of windows."""

import numpy as np
import pytest

from models.decoding import best_spans, entities, spans_of_tags

TAGS = ["O", "B-x", "I-x", "B-y"]


class TestSpansOfTags:
    @pytest.mark.parametrize(
        ("tags", "expected"),
        [
            ("", []),
            ("O O", []),
            ("B-x I-x O", [("x", 0, 2)]),
            ("O I-x I-x", [("x", 1, 3)]),
            ("B-x B-x", [("x", 0, 1), ("x", 1, 2)]),
            ("B-x I-y", [("x", 0, 1), ("y", 1, 2)]),
            ("I-x B-x I-x", [("x", 0, 1), ("x", 1, 3)]),
            ("B-x O I-x", [("x", 0, 1), ("x", 2, 3)]),
            ("B-x I-x E-x I-x", [("x", 0, 3), ("x", 3, 4)]),
            ("S-x S-x I-x", [("x", 0, 1), ("x", 1, 2), ("x", 2, 3)]),
            ("B I O B", [("_", 0, 2), ("_", 3, 4)]),
            ("noun noun verb O noun", [("noun", 0, 2), ("verb", 2, 3), ("noun", 4, 5)]),
            ("B-a-b I-a-b", [("a-b", 0, 2)]),
        ],
    )
    def test_as_seqeval_reads_them(self, tags, expected):
        assert spans_of_tags(tags.split()) == expected


class TestEntities:
    def test_nothing(self):
        assert entities(np.empty((0, 4)), TAGS, np.empty((0, 2), int), "simple") == []

    def test_scores_and_offsets(self):
        logits = np.log([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.5, 0.3], [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.0001, 0.7999]])
        offsets = np.array([[0, 3], [4, 8], [9, 10], [11, 13]])
        first, second = entities(logits, TAGS, offsets, "simple")
        assert (first.entity_group, first.start, first.end) == ("x", 0, 8)
        assert first.score == pytest.approx(0.6)
        assert (second.entity_group, second.start, second.end) == ("y", 11, 13)
        assert [one.entity_group for one in entities(logits, TAGS, offsets, "none")] == ["B-x", "I-x", "B-y"]

    @pytest.mark.parametrize(
        ("strategy", "kind", "score"), [("first", "x", 0.5), ("average", "y", 0.5), ("max", "y", 0.8)]
    )
    def test_pieces_of_a_word(self, strategy, kind, score):
        logits = np.log([[0.2, 0.5, 0.1, 0.2], [0.05, 0.05, 0.1, 0.8], [0.97, 0.01, 0.01, 0.01]])
        (found,) = entities(logits, TAGS, np.array([[0, 2], [2, 5], [6, 7]]), strategy, [4, 4, 5])
        assert (found.entity_group, found.start, found.end) == (kind, 0, 5)
        assert found.score == pytest.approx(score)


def window(places, **scores):
    """Logits of so many places, 0 but at the places named `b3` (begin) and `e4` (end)."""
    found = np.zeros((places, 2))
    for name, score in scores.items():
        found[int(name[1:]), "be".index(name[0])] = score
    return found


OFFSETS = np.array([[0, 0], [0, 3], [4, 6], [7, 9]])


class TestBestSpans:
    def test_the_probability_is_among_all_that_was_possible(self):
        (best,) = best_spans([window(4, b2=3, e3=4)], [OFFSETS], allow_none=False)
        assert (best.start, best.end) == (4, 9)
        # 2-3 scores 7, 2-2 3, 3-3 and 1-3 4, and 1-1, 1-2 and no answer 0.
        assert best.score == pytest.approx(np.exp(7) / (np.exp(7) + np.exp(3) + 2 * np.exp(4) + 3))

    def test_it_never_ends_before_it_begins(self):
        (best,) = best_spans([window(4, b3=5, e1=4)], [OFFSETS], allow_none=False)
        assert (best.start, best.end) == (7, 9)

    def test_no_longer_than_asked(self):
        one = window(4, b1=5, e3=5, e2=1)
        assert best_spans([one], [OFFSETS], allow_none=False)[0].end == 9
        assert best_spans([one], [OFFSETS], allow_none=False, max_answer_length=2)[0].end == 6

    def test_no_answer(self):
        one = window(4, b0=3, e0=3, b1=2, e1=2)
        best = best_spans([one], [OFFSETS], allow_none=True)[0]
        assert (best.start, best.end) == (0, 0)
        assert best_spans([one], [OFFSETS], allow_none=False)[0].end == 3

    def test_one_window_that_sees_an_answer_is_enough(self):
        later = OFFSETS + np.array([[0], [9], [9], [9]])
        blind, seeing = window(4, b0=9, e0=9), window(4, b2=2, e2=2)
        best = best_spans([blind, seeing], [OFFSETS, later], allow_none=True)[0]
        assert (best.start, best.end) == (13, 15)

    def test_a_stretch_that_two_windows_show_counts_once(self):
        found = best_spans([window(4, b3=2, e3=2), window(4, b3=5, e3=1)], [OFFSETS] * 2, top_k=9, allow_none=False)
        assert len({(one.start, one.end) for one in found}) == len(found) == 6
        assert (found[0].start, found[0].end) == (7, 9)
        assert sum(one.score for one in found) == pytest.approx(1 - found[-1].score)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)

    @pytest.mark.parametrize("allow_none", [True, False])
    def test_a_context_without_a_place(self, allow_none):
        (only,) = best_spans([window(1, b0=-3)], [OFFSETS[:1]], allow_none=allow_none)
        assert (only.start, only.end, only.score) == (0, 0, 1)

    def test_tokens_without_characters_are_no_answer(self):
        offsets = np.array([[0, 0], [3, 3], [4, 6]])
        (best,) = best_spans([window(3, b1=9, e1=9)], [offsets], allow_none=False)
        assert (best.start, best.end) == (3, 6)
