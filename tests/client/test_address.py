"""Which service, and with which key."""

from pathlib import Path

import pytest

from limbeck import address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "limbeck-data"
    found.mkdir()
    (found / "admin.key").write_text("lk_folder\n")
    return found


def test_nothing_is_known(tmp_path: Path) -> None:
    assert address.find() == address.Address("http://127.0.0.1:8000", None)


def test_the_folder_where_one_stands(folder: Path) -> None:
    assert address.find() == address.Address("http://127.0.0.1:8000", "lk_folder")


def test_the_address_that_up_left(folder: Path) -> None:
    (folder / "url").write_text("http://127.0.0.1:9123\n")
    assert address.find() == address.Address("http://127.0.0.1:9123", "lk_folder")


def test_the_environment_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_URL", "http://localhost:1/")
    monkeypatch.setenv("LIMBECK_API_KEY", "lk_environment")
    assert address.find() == address.Address("http://localhost:1", "lk_environment")
    assert address.find("http://other", "lk_given") == address.Address("http://other", "lk_given")


@pytest.mark.parametrize(
    "url", ["https://limbeck.example.org", "http://10.0.0.1:8000", "http://127.0.0.1.evil.example"]
)
def test_this_machines_key_goes_to_no_other_machine(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_URL", url)
    assert address.find().key is None


def test_a_data_folder_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    elsewhere = folder.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("LIMBECK_DATA_DIR", str(elsewhere))
    assert address.find().key == "lk_folder"
