"""A checkpoint is whole or passed over; the one before it is never hurt."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import StorageFailure
from worker.checkpoints import Checkpoints


def tensors(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(3, 4, generator=generator),
        "step": torch.tensor(float(step)),
        "flags": torch.tensor([True, False]),
        "numbers": torch.arange(step + 1),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 3),
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


class TestSave:
    def test_comes_back_as_it_was(self, tmp_path: Path) -> None:
        store = Checkpoints(tmp_path)
        state = {"step": 7, "score": 0.1 + 0.2, "worst": float("-inf"), "none": None, "name": "é"}
        path = store.save("distilled-0-0", 7, tensors(7), state)
        found = store.latest("distilled-0-0")
        assert found is not None
        assert (found.unit, found.step, found.path) == ("distilled-0-0", 7, path)
        assert found.state == state
        assert same(found.tensors, tensors(7))

    def test_the_two_newest_stay(self, tmp_path: Path) -> None:
        store = Checkpoints(tmp_path)
        for step in (9, 10, 100, 11):
            store.save("unit", step, tensors(step), {})
        assert sorted(path.name for path in (tmp_path / "unit").iterdir()) == ["step-000000000011", "step-000000000100"]

    def test_the_same_step_again_replaces_it(self, tmp_path: Path) -> None:
        store = Checkpoints(tmp_path)
        store.save("unit", 1, tensors(1), {"try": 1})
        store.save("unit", 1, tensors(2), {"try": 2})
        found = store.latest("unit")
        assert found is not None
        assert found.state == {"try": 2}
        assert same(found.tensors, tensors(2))

    def test_tied_weights_and_views_are_written_apart(self, tmp_path: Path) -> None:
        base = torch.arange(12.0)
        odd = {"a": base, "b": base, "view": base[2:5], "turned": base.view(3, 4).T}
        Checkpoints(tmp_path).save("unit", 1, odd, {})
        found = Checkpoints(tmp_path).latest("unit")
        assert found is not None
        assert same(found.tensors, odd)

    def test_what_a_dead_writer_left_is_in_nobodys_way(self, tmp_path: Path) -> None:
        partial = tmp_path / "unit" / ".step-000000000001.partial"
        partial.mkdir(parents=True)
        (partial / "tensors.safetensors").write_bytes(b"half")
        store = Checkpoints(tmp_path, on_damaged=pytest.fail)
        assert store.latest("unit") is None
        store.save("unit", 1, tensors(1), {})
        assert [path.name for path in (tmp_path / "unit").iterdir()] == ["step-000000000001"]

    @pytest.mark.parametrize("unit", ["", "..", "../up", "a/b", "/root", ".hidden", "a\0b"])
    def test_a_unit_is_a_plain_name(self, tmp_path: Path, unit: str) -> None:
        with pytest.raises(ValueError, match="name"):
            Checkpoints(tmp_path).save(unit, 1, tensors(1), {})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


class TestDamage:
    @pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
    @pytest.mark.parametrize("hurt", [cut, flip, empty, Path.unlink])
    def test_the_one_before_is_used_and_somebody_is_told(self, tmp_path: Path, file: str, hurt: object) -> None:
        damaged: list[Path] = []
        store = Checkpoints(tmp_path, on_damaged=damaged.append)
        store.save("unit", 1, tensors(1), {"step": 1})
        last = store.save("unit", 2, tensors(2), {"step": 2})
        assert callable(hurt)
        hurt(last / file)
        found = store.latest("unit")
        assert found is not None
        # A flipped bit of the manifest may fall on white space, and then nothing is wrong.
        assert found.step == (2 if not damaged else 1)
        assert damaged == [last] or (file == "manifest.json" and hurt is flip)
        assert same(found.tensors, tensors(found.step))

    def test_all_damaged_is_none(self, tmp_path: Path) -> None:
        damaged: list[Path] = []
        store = Checkpoints(tmp_path, on_damaged=damaged.append)
        for step in (1, 2):
            cut(store.save("unit", step, tensors(step), {}) / "tensors.safetensors")
        assert store.latest("unit") is None
        assert [path.name[-1] for path in damaged] == ["2", "1"]

    def test_a_checkpoint_of_another_unit_is_not_taken(self, tmp_path: Path) -> None:
        store = Checkpoints(tmp_path)
        store.save("one", 1, tensors(1), {}).rename(tmp_path / "kept")
        (tmp_path / "two").mkdir()
        (tmp_path / "kept").rename(tmp_path / "two" / "step-000000000001")
        assert store.latest("two") is None


class TestPreviousAttempts:
    def test_the_newest_step_wins_wherever_it_lies(self, tmp_path: Path) -> None:
        first, second, third = (tmp_path / name for name in ("1", "2", "3"))
        Checkpoints(first).save("unit", 5, tensors(5), {"of": 1})
        Checkpoints(second, [first]).save("unit", 3, tensors(3), {"of": 2})
        found = Checkpoints(third, [second, first]).latest("unit")
        assert found is not None
        assert (found.step, found.state) == (5, {"of": 1})

    def test_of_one_step_the_newest_attempts_wins(self, tmp_path: Path) -> None:
        first, second = tmp_path / "1", tmp_path / "2"
        Checkpoints(first).save("unit", 5, tensors(5), {"of": 1})
        Checkpoints(second).save("unit", 5, tensors(5), {"of": 2})
        found = Checkpoints(tmp_path / "3", [second, first]).latest("unit")
        assert found is not None
        assert found.state == {"of": 2}

    def test_they_are_never_written_to(self, tmp_path: Path) -> None:
        first, second = tmp_path / "1", tmp_path / "2"
        Checkpoints(first).save("unit", 5, tensors(5), {})
        store = Checkpoints(second, [first])
        for step in (6, 7, 8):
            store.save("unit", step, tensors(step), {})
        store.finish("unit", tensors(9), {})
        assert [path.name for path in (first / "unit").iterdir()] == ["step-000000000005"]


class TestFinished:
    def test_is_found_here_and_by_later_attempts(self, tmp_path: Path) -> None:
        first = Checkpoints(tmp_path / "1")
        assert first.finished("unit") is None
        first.save("unit", 1, tensors(1), {})
        assert first.finished("unit") is None
        first.finish("unit", tensors(2), {"steps": 2})
        for store in (first, Checkpoints(tmp_path / "2", [tmp_path / "1"])):
            found = store.finished("unit")
            assert found is not None
            assert found.state == {"steps": 2}
            assert same(found.tensors, tensors(2))

    def test_its_steps_are_removed(self, tmp_path: Path) -> None:
        store = Checkpoints(tmp_path)
        store.save("unit", 1, tensors(1), {})
        store.save("other", 1, tensors(1), {})
        store.finish("unit", tensors(2), {})
        assert store.latest("unit") is None
        assert store.latest("other") is not None

    def test_a_damaged_one_is_not_done(self, tmp_path: Path) -> None:
        damaged: list[Path] = []
        store = Checkpoints(tmp_path, on_damaged=damaged.append)
        path = store.finish("unit", tensors(2), {})
        flip(path / "tensors.safetensors")
        assert store.finished("unit") is None
        assert damaged == [path]


NO_SPACE = """
import resource, sys, torch
from pathlib import Path
from models.errors import StorageFailure
from worker.checkpoints import Checkpoints
store = Checkpoints(Path(sys.argv[1]), on_damaged=print)
store.save("unit", 1, {"weight": torch.ones(1000)}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.save("unit", 2, {"weight": torch.ones(1_000_000)}, {"step": 2})
except StorageFailure as error:
    print(error.code, store.latest("unit").step, sorted(path.name for path in (store.folder / "unit").iterdir()))
"""


class TestNoSpace:
    def test_says_so_and_keeps_the_one_before(self, tmp_path: Path) -> None:
        # The limit holds for a whole process, so it needs one of its own.
        command = [sys.executable, "-c", NO_SPACE, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout == "storage_full 1 ['step-000000000001']\n"

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(StorageFailure) as caught:
            Checkpoints(tmp_path / "file").save("unit", 1, tensors(1), {})
        assert caught.value.code == "storage_failure"
