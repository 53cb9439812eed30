"""`worker.signals`: the cache of logits, and what makes a network the same one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from transformers import AutoTokenizer

from models.errors import JobFailure
from tests.factories import LABELS, tiny_network, tiny_teacher
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


class TestCache:
    def test_nothing_known(self, cache):
        found, missing = cache.logits(TEACHER, KEYS)
        assert found.shape == (6, 0)
        assert missing.tolist() == [0, 1, 2, 3, 4, 5]
        assert cache.logits(TEACHER, KEYS, classes=3)[0].shape == (6, 3)

    def test_comes_back_bit_for_bit_in_any_order(self, cache):
        logits = some_logits(6)
        logits[0, 0] = np.float32(1e-42)  # a denormal
        cache.store(TEACHER, KEYS, logits)
        order = [3, 0, 5, 3]
        found, missing = cache.logits(TEACHER, [KEYS[i] for i in order])
        assert_array_equal(found.view(np.int32), logits[order].view(np.int32))
        assert not len(missing)

    def test_rows_add_up(self, cache):
        logits = some_logits(6)
        cache.store(TEACHER, KEYS[:2], logits[:2])
        found, missing = cache.logits(TEACHER, KEYS)
        assert missing.tolist() == [2, 3, 4, 5]
        assert np.isnan(found[missing]).all()
        cache.store(TEACHER, [KEYS[i] for i in missing], logits[missing])
        assert_array_equal(cache.logits(TEACHER, KEYS)[0], logits)

    def test_teachers_do_not_mix(self, cache):
        cache.store(TEACHER, KEYS, some_logits(6))
        assert len(cache.logits(OTHER, KEYS)[1]) == 6

    def test_another_number_of_classes_counts_as_absent(self, cache):
        cache.store(TEACHER, KEYS, some_logits(6, 3))
        assert len(cache.logits(TEACHER, KEYS, classes=2)[1]) == 6
        cache.store(TEACHER, KEYS[:1], some_logits(1, 2))
        assert cache.logits(TEACHER, KEYS, classes=2)[1].tolist() == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
    def test_a_damaged_file_counts_as_absent(self, cache, tmp_path, damage):
        cache.store(TEACHER, KEYS, some_logits(6))
        (file,) = (tmp_path / "signals").glob("*.parquet")
        content = bytearray(file.read_bytes())
        content[40] ^= 0xFF
        file.write_bytes({"cut": bytes(content[:-30]), "flip": bytes(content), "empty": b""}[damage])
        assert len(cache.logits(TEACHER, KEYS)[1]) == 6
        cache.store(TEACHER, KEYS, some_logits(6))
        assert not len(cache.logits(TEACHER, KEYS)[1])

    def test_least_recently_used_goes_first(self, tmp_path):
        cache = SignalCache(tmp_path, 10**9)
        for age, key in enumerate(("a", "b", "c")):
            cache.store(key * 64, KEYS, some_logits(6))
            os.utime(tmp_path / f"{key * 64}.parquet", (1000 + age, 1000 + age))
        cache.logits("a" * 64, KEYS)
        size = (tmp_path / f"{'a' * 64}.parquet").stat().st_size
        SignalCache(tmp_path, 2 * size + 100).store("d" * 64, KEYS, some_logits(6))
        assert {path.name[0] for path in tmp_path.glob("*.parquet")} == {"a", "d"}

    def test_what_was_just_written_stays(self, tmp_path):
        cache = SignalCache(tmp_path, 0)
        cache.store(TEACHER, KEYS, some_logits(6))
        assert not len(cache.logits(TEACHER, KEYS)[1])
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
        found, missing = SignalCache(tmp_path, 10**9).logits(TEACHER, keys)
        assert not len(missing)
        assert found[:, 0].tolist() == [me * 100 + i for me in range(3) for i in range(10)]

    def test_wrong_shapes_and_keys(self, cache):
        with pytest.raises(ValueError, match="do not fit"):
            cache.store(TEACHER, KEYS, some_logits(5))
        with pytest.raises(ValueError, match="digest"):
            cache.logits("../up", KEYS)


class TestFingerprint:
    def test_of_a_folder(self, tmp_path):
        one, same, other = (
            signals.fingerprint(tiny_teacher(tmp_path / str(i), seed=s)) for i, s in enumerate((0, 0, 1))
        )
        assert one == same != other

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_every_part_counts(self, tmp_path, name):
        folder = tiny_teacher(tmp_path)
        before = signals.fingerprint(folder)
        (folder / "README.md").write_text("not a part")
        assert signals.fingerprint(folder) == before
        with (folder / name).open("ab") as file:
            file.write(b" ")
        assert signals.fingerprint(folder) != before

    def test_of_a_network_in_memory(self, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher(tmp_path))
        before = signals.fingerprint_of(tiny_network(), tokenizer)
        assert before == signals.fingerprint_of(tiny_network(), tokenizer)
        changed = tiny_network()
        with torch.no_grad():
            changed.classifier.bias[0] += 1e-7
        assert signals.fingerprint_of(changed, tokenizer) != before
        assert signals.fingerprint_of(tiny_network(LABELS[::-1]), tokenizer) != before


class TestLabelOrder:
    @pytest.mark.parametrize(
        ("own", "labels", "order"),
        [
            (["b", "a"], ["a", "b"], [1, 0]),
            (["NEGATIVE", "POSITIVE"], ["negative", "positive"], [0, 1]),
            (["a", "A"], ["A", "a"], [1, 0]),
            (["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"], [0, 1, 2]),
            (["LABEL_0", "LABEL_1"], ["1", "2"], None),
            (["LABEL_0", "LABEL_1"], ["negative", "positive"], None),
            (["a", "b"], ["a", "b", "c"], None),
            (["a", "a"], ["a", "b"], None),
        ],
    )
    def test_by_name(self, own, labels, order):
        assert signals.label_order(own, labels) == order


class TestOpenFolder:
    def test_reads_only_what_is_safe(self, tmp_path):
        folder = tiny_teacher(tmp_path)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(JobFailure) as caught:
            signals.open_folder(folder, LABELS, seed=0, pointer="/teachers/0/model")
        assert (caught.value.code, caught.value.pointer) == ("unsafe_weights", "/teachers/0/model")

    def test_leaves_the_random_state_and_repeats(self, tmp_path):
        folder = tiny_teacher(tmp_path, labels=None)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        one, same, other = (signals.open_folder(folder, LABELS, seed=seed, pointer="").network for seed in (0, 0, 1))
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(one.classifier.weight, same.classifier.weight)
        assert torch.equal(one.bert.pooler.dense.weight, same.bert.pooler.dense.weight)
        assert not torch.equal(one.classifier.weight, other.classifier.weight)
