"""What a host keeps between jobs: found by content, whole or absent, within a budget."""

import os
from pathlib import Path

import pytest

from worker.cache import HostCache


def fill(cache: HostCache, name: str, size: int = 1000) -> Path:
    folder = cache.folder("teachers", name)
    with cache.new(folder) as partial:
        (partial / "weights").write_bytes(b"x" * size)
    return folder


def test_it_is_found_by_what_decided_it(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 10_000)
    folder = fill(cache, "a")
    assert HostCache(tmp_path, 10_000).folder("teachers", "a") == folder
    assert (folder / "weights").read_bytes() == b"x" * 1000
    assert cache.folder("teachers", "b") != folder
    assert cache.folder("controls", "a") != folder


def test_a_folder_that_could_not_be_filled_is_not_there(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 10_000)
    folder = cache.folder("teachers", "a")
    with pytest.raises(OSError, match="full"), cache.new(folder) as partial:
        (partial / "weights").write_bytes(b"x")
        raise OSError("the disk is full")
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []


def test_of_two_that_fill_it_one_stays(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 10_000)
    folder = cache.folder("teachers", "a")
    with cache.new(folder) as slow:
        fill(HostCache(tmp_path, 10_000), "a", size=7)
        (slow / "weights").write_bytes(b"y" * 9)
    assert (folder / "weights").read_bytes() == b"x" * 7


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    folders = [fill(HostCache(tmp_path, 10_000), name) for name in names]
    for age, folder in enumerate(folders):
        os.utime(folder, (1000 + age, 1000 + age))
    HostCache(tmp_path, 10_000).folder("teachers", "a")  # used now
    fill(HostCache(tmp_path, 3000), "d")
    assert [folder.exists() for folder in folders] == [True, False, True]


def test_what_this_job_uses_stays(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 1500)
    first, second = fill(cache, "a"), fill(cache, "b")
    assert first.exists()
    assert second.exists()
    fill(HostCache(tmp_path, 1500), "c")
    assert not first.exists()
    assert not second.exists()
