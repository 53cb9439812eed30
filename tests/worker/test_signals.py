"""`worker.signals`: the cache of logits."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from worker import signals
from worker.signals import SignalCache

TEACHER, OTHER = "a" * 64, "b" * 64
KEYS = signals.row_keys("t", [f"text {i}" for i in range(6)])


def some_logits(rows: int, classes: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, classes)).astype(np.float32)


@pytest.fixture
def cache(tmp_path):
    return SignalCache(tmp_path / "signals", 10**9)


class TestRowKeys:
    def test_over_template_and_text(self):
        keys = {*signals.row_keys("a", ["x", "y", "ax"]), *signals.row_keys("b", ["x"]), *signals.row_keys("aa", ["x"])}
        assert len(keys) == 5
        assert all(len(key) == 64 for key in keys)
        assert signals.row_keys("a", ["x", "x"])[0] == signals.row_keys("a", ["x"])[0]

    def test_a_lone_surrogate(self):
        assert len(signals.row_keys("a", ["\ud800"])) == 1


def missing(cache, teacher, keys):
    return [row for row, values in enumerate(cache.known(teacher, keys)) if values is None]


class TestCache:
    def test_nothing_known(self, cache):
        assert cache.known(TEACHER, KEYS) == [None] * 6

    def test_comes_back_bit_for_bit_in_any_order(self, cache):
        logits = some_logits(6)
        logits[0, 0] = np.float32(1e-42)  # a denormal
        cache.store(TEACHER, KEYS, logits)
        order = [3, 0, 5, 3]
        found = np.stack(cache.known(TEACHER, [KEYS[i] for i in order]))
        assert_array_equal(found.view(np.int32), logits[order].view(np.int32))

    def test_rows_of_several_lengths_come_back_flat(self, cache):
        parts = [some_logits(places, 2, seed=places) for places in range(6)]
        cache.store(TEACHER, KEYS, parts)
        for part, found in zip(parts, cache.known(TEACHER, KEYS), strict=True):
            assert_array_equal(found, part.ravel())

    def test_what_is_not_known_of_a_place_stays_unknown(self, cache):
        cache.store(TEACHER, KEYS[:1], [np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32)])
        (found,) = cache.known(TEACHER, KEYS[:1])
        assert np.isnan(found).tolist() == [False, False, True, True]

    def test_rows_add_up(self, cache):
        logits = some_logits(6)
        cache.store(TEACHER, KEYS[:2], logits[:2])
        assert missing(cache, TEACHER, KEYS) == [2, 3, 4, 5]
        cache.store(TEACHER, KEYS[2:], logits[2:])
        assert_array_equal(np.stack(cache.known(TEACHER, KEYS)), logits)

    def test_a_row_is_replaced(self, cache):
        cache.store(TEACHER, KEYS, some_logits(6, 3))
        cache.store(TEACHER, KEYS[:1], some_logits(1, 2))
        assert [len(one) for one in cache.known(TEACHER, KEYS)] == [2, 3, 3, 3, 3, 3]

    def test_teachers_do_not_mix(self, cache):
        cache.store(TEACHER, KEYS, some_logits(6))
        assert len(missing(cache, OTHER, KEYS)) == 6

    def test_a_file_of_an_earlier_version_is_read(self, cache, tmp_path):
        logits = some_logits(6)
        values = pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel(), pa.float32()), 3)
        keys = pa.array([bytes.fromhex(key) for key in KEYS], pa.binary(32))
        path = tmp_path / "signals" / f"{TEACHER}.parquet"
        pq.write_table(pa.table({"key": keys, "logits": values}), path, write_page_checksum=True)
        assert_array_equal(np.stack(cache.known(TEACHER, KEYS)), logits)

    @pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
    def test_a_damaged_file_counts_as_absent(self, cache, tmp_path, damage):
        cache.store(TEACHER, KEYS, some_logits(6))
        (file,) = (tmp_path / "signals").glob("*.parquet")
        content = bytearray(file.read_bytes())
        content[40] ^= 0xFF
        file.write_bytes({"cut": bytes(content[:-30]), "flip": bytes(content), "empty": b""}[damage])
        assert len(missing(cache, TEACHER, KEYS)) == 6
        cache.store(TEACHER, KEYS, some_logits(6))
        assert not missing(cache, TEACHER, KEYS)

    def test_least_recently_used_goes_first(self, tmp_path):
        cache = SignalCache(tmp_path, 10**9)
        for age, key in enumerate(("a", "b", "c")):
            cache.store(key * 64, KEYS, some_logits(6))
            os.utime(tmp_path / f"{key * 64}.parquet", (1000 + age, 1000 + age))
        cache.known("a" * 64, KEYS)
        size = (tmp_path / f"{'a' * 64}.parquet").stat().st_size
        SignalCache(tmp_path, 2 * size + 100).store("d" * 64, KEYS, some_logits(6))
        assert {path.name[0] for path in tmp_path.glob("*.parquet")} == {"a", "d"}

    def test_what_was_just_written_stays(self, tmp_path):
        cache = SignalCache(tmp_path, 0)
        cache.store(TEACHER, KEYS, some_logits(6))
        assert not missing(cache, TEACHER, KEYS)
        assert not list(tmp_path.glob("*.part"))

    def test_several_processes_lose_nothing(self, tmp_path):
        program = (
            "import sys, numpy as np; from pathlib import Path; from worker import signals\n"
            "cache = signals.SignalCache(Path(sys.argv[1]), 10**9); me = int(sys.argv[2])\n"
            "for i in range(10):\n"
            "    keys = signals.row_keys('t', [f'{me} {i}'])\n"
            "    cache.store('a' * 64, keys, np.full((1, 2), me * 100 + i, np.float32))\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path)]
        running = [subprocess.Popen([*command, str(me)]) for me in range(3)]
        assert [process.wait(120) for process in running] == [0, 0, 0]
        keys = signals.row_keys("t", [f"{me} {i}" for me in range(3) for i in range(10)])
        found = np.stack(SignalCache(tmp_path, 10**9).known(TEACHER, keys))
        assert found[:, 0].tolist() == [me * 100 + i for me in range(3) for i in range(10)]

    def test_wrong_counts_and_keys(self, cache):
        with pytest.raises(ValueError, match="zip"):
            cache.store(TEACHER, KEYS, some_logits(5))
        with pytest.raises(ValueError, match="digest"):
            cache.known("../up", KEYS)
