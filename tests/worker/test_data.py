"""`worker.data`: batches, reading and splits."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from models.errors import JobFailure
from tests.factories import parquet
from worker import data

lengths_of_rows = st.lists(st.integers(1, 200), max_size=300).map(lambda values: np.array(values, np.int64))


class TestBatches:
    @given(lengths_of_rows, st.integers(16, 1000), st.integers(0, 9), st.integers(0, 9))
    def test_each_row_once_within_the_budget(self, lengths, tokens, seed, epoch):
        found = data.batches(lengths, tokens, seed=seed, epoch=epoch)
        assert sorted(row for rows in found for row in rows.tolist()) == list(range(len(lengths)))
        for rows in found:
            assert len(rows) == 1 or lengths[rows].max() * len(rows) <= tokens

    def test_pure_function_of_seed_and_epoch(self):
        lengths = np.random.default_rng(0).integers(3, 60, 500)
        once, again = (data.batches(lengths, 256, seed=3, epoch=1) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
        for seed, epoch in ((3, 2), (4, 1)):
            other = data.batches(lengths, 256, seed=seed, epoch=epoch)
            assert not np.array_equal(np.concatenate(once), np.concatenate(other))

    def test_little_padding_and_shuffled(self):
        lengths = np.random.default_rng(0).integers(3, 128, 20_000)
        found = data.batches(lengths, 1024, seed=0, epoch=0)
        padded = sum(int(lengths[rows].max()) * len(rows) for rows in found)
        assert lengths.sum() / padded > 0.9
        longest = [int(lengths[rows].max()) for rows in found]
        assert 0.3 < np.mean([a > b for a, b in pairwise(longest)]) < 0.7

    @given(lengths_of_rows, st.integers(16, 1000))
    def test_in_order_begins_with_the_longest(self, lengths, tokens):
        found = data.in_order(lengths, tokens)
        order = [row for rows in found for row in rows.tolist()]
        assert sorted(order) == list(range(len(lengths)))
        assert lengths[order].tolist() == sorted(lengths.tolist(), reverse=True)
        assert all(len(rows) == 1 or lengths[rows].max() * len(rows) <= tokens for rows in found)

    def test_micro_batches_have_the_rows_of_their_batch(self):
        lengths = np.array([5, 9, 3, 8, 30, 2])
        rows = np.array([4, 0, 2, 5])
        parts = data.micro_batches(rows, lengths, 16)
        assert [part.tolist() for part in parts] == [[4], [0, 2, 5]]
        assert [part.tolist() for part in data.micro_batches(rows, lengths, None)] == [rows.tolist()]

    def test_collate_pads_on_the_right(self):
        encoded = data.Encoded([np.array([5, 6, 7], np.int32), np.array([8], np.int32)], np.array([3, 1]), pad_id=1)
        batch = data.collate(encoded, np.array([1, 0]))
        assert batch["input_ids"].tolist() == [[8, 1, 1], [5, 6, 7]]
        assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
        assert {str(tensor.dtype) for tensor in batch.values()} == {"torch.int64"}
        assert len(encoded) == 2


class TestReading:
    def test_only_the_named_columns(self, tmp_path):
        path = parquet(tmp_path / "a.parquet", text=["x"], label=[1], other=[2])
        assert data.read_columns(path, {"text": "/task/text", "label": "/task/label"}).column_names == ["text", "label"]

    def test_missing_column_names_what_is_there(self, tmp_path):
        path = parquet(tmp_path / "a.parquet", text=["x"], tag=[1])
        with pytest.raises(JobFailure, match="'tag'") as caught:
            data.read_columns(path, {"text": "/task/text", "label": "/task/label"})
        assert (caught.value.code, caught.value.pointer) == ("missing_column", "/task/label")

    def test_a_file_that_is_no_parquet(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
        with pytest.raises(JobFailure) as caught:
            data.read_columns(tmp_path / "a.parquet", {"text": "/task/text"})
        assert caught.value.code == "dataset_unreadable"

    @pytest.mark.parametrize("other", ["good day", "  Good\tDAY\n", "Ｇｏｏｄ day", "GOOD\u00a0day"])
    def test_equal_after_normalisation(self, other):
        assert data.normalise(other) == "good day"

    def test_digest_tells_where_a_text_ends(self):
        digests = {
            data.digest(["ab"], ["c"]),
            data.digest(["a"], ["bc"]),
            data.digest(["ab"], [None]),
            data.digest(["ab"], [""]),
            data.digest(["ab", "c"], [None, None]),
        }
        assert len(digests) == 5


@st.composite
def rows_with_duplicates(draw):
    """Groups and strata of 30 to 200 rows of 2 to 4 labels, with a few rows that lack one."""
    count = draw(st.integers(30, 200))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    groups = random.integers(0, count * draw(st.integers(1, 4)), count)
    strata = random.integers(-1 if draw(st.booleans()) else 0, draw(st.integers(2, 4)), count)
    return groups, strata


class TestSplit:
    @settings(max_examples=200)
    @given(rows_with_duplicates(), st.integers(1, 6), st.integers(1, 6), st.integers(0, 5))
    def test_no_group_on_two_sides(self, rows, validation, test, seed):
        groups, strata = rows
        try:
            parts = data.split(groups, strata, validation=validation, test=test, seed=seed)
        except JobFailure as failure:
            assert failure.code == "too_few_rows"  # noqa: PT017 - a refusal is as good as a split here
            return
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not set(groups[parts[one]]) & set(groups[parts[other]])
        for part, wanted in ((parts[1], validation), (parts[2], test)):
            assert len(part) <= wanted
            assert (strata[part] >= 0).all()

    def test_counts_are_exact_and_stratified(self):
        strata = np.repeat([0, 1, 2], [700, 250, 50])
        train, validation, test = data.split(np.arange(1000), strata, validation=0.1, test=200, seed=0)
        assert (len(train), len(validation), len(test)) == (700, 100, 200)
        assert np.bincount(strata[test]).tolist() == [140, 50, 10]
        assert np.bincount(strata[validation]).tolist() == [70, 25, 5]

    def test_counts_are_exact_among_duplicates(self):
        groups = np.concatenate([np.repeat(np.arange(40), 5), np.arange(40, 240)])
        strata = groups % 2
        _, validation, test = data.split(groups, strata, validation=33, test=77, seed=1)
        assert (len(validation), len(test)) == (33, 77)

    def test_a_rare_label_stays_in_training(self):
        strata = np.array([0] * 50 + [1] * 50 + [2])
        for seed in range(20):
            train, _, _ = data.split(np.arange(101), strata, validation=10, test=40, seed=seed)
            assert 100 in train

    def test_seeded(self):
        groups, strata = np.arange(100), np.arange(100) % 3
        first, same, other = (data.split(groups, strata, validation=10, test=20, seed=seed)[2] for seed in (0, 0, 1))
        assert_array_equal(first, same)
        assert not np.array_equal(first, other)

    def test_rows_without_a_label_only_train(self):
        strata = np.array([0, 1] * 10 + [-1] * 80)
        train, validation, test = data.split(np.arange(100), strata, validation=0.1, test=0.2, seed=0)
        assert (len(train), len(validation), len(test)) == (94, 2, 4)

    @pytest.mark.parametrize(("validation", "test"), [(5, 5), (0.5, 0.5), (3, 100)])
    def test_nothing_left_to_train_on(self, validation, test):
        with pytest.raises(JobFailure) as caught:
            data.split(np.arange(10), np.arange(10) % 2, validation=validation, test=test, seed=0)
        assert (caught.value.code, caught.value.pointer) == ("too_few_rows", "/dataset")

    def test_all_rows_equal(self):
        with pytest.raises(JobFailure) as caught:
            data.split(np.zeros(10, np.int64), np.arange(10) % 2, validation=2, test=2, seed=0)
        assert caught.value.code == "too_few_rows"


class TestLimited:
    def test_stratified_and_seeded(self):
        strata = np.repeat([-1, 0, 1], [100, 300, 600])
        rows = data.limited(strata, 100, seed=0)
        assert np.unique(strata[rows], return_counts=True)[1].tolist() == [10, 30, 60]
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert_array_equal(rows, data.limited(strata, 100, seed=0))
        assert not np.array_equal(rows, data.limited(strata, 100, seed=1))

    @pytest.mark.parametrize("limit", [None, 5, 50])
    def test_no_limit(self, limit):
        assert data.limited(np.array([0, 1, 0, 1, 1]), limit, seed=0).tolist() == [0, 1, 2, 3, 4]
