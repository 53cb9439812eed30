"""Ids: they sort in the order of their making."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from models.tables import new_id


def test_ids_sort_in_the_order_of_their_making() -> None:
    made = [new_id("job") for _ in range(5_000)]
    assert made == sorted(set(made))


def test_of_many_threads_no_two_get_the_same() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: new_id("job"), range(5_000)))
    assert len(set(made)) == 5_000


def test_a_clock_that_is_set_back_changes_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id("job")
    monkeypatch.setattr("models.tables.time.time", lambda: 1.0)
    assert new_id("job") > before


def test_the_form() -> None:
    assert new_id("ds")[:3] == "ds_"
    assert len(new_id("ds")) == 3 + 26
