"""Model references: their grammar, and what they find without importing anything."""

import sys
from pathlib import Path

import pytest

from models.errors import Invalid, Missing
from models.references import locate, parse, read_config


class TestGrammar:
    @pytest.mark.parametrize(
        "text",
        [
            "hub:bert-base-uncased@main",
            "hub:org/name@v1.0",
            "package:some_package/model",
            "file:a/b-1.0",
            "student:st_01m867sm5824vm5n9bm3z2x521",
            "teacher:tc_01m867sm5824vm5n9bm3z2x521",
        ],
    )
    def test_it_reads_what_it_writes(self, text: str) -> None:
        assert str(parse(text)) == text

    def test_a_hub_reference_has_a_revision(self) -> None:
        assert parse("hub:org/name").revision == "main"

    @pytest.mark.parametrize(
        "text",
        [
            "", "name", "ftp:name", "file:", "file:/etc", "file:../x", "file:a/../b", "file:a//b", "file:a\\b",
            "file:a\0b", "file:.hidden", "package:a.b", "package:/x", "hub:a/b/c", "hub:a b", "student:tc_0123456789",
            "file:" + "a" * 5000, "hub:org/name@", "file:%2e%2e/x",
        ],
    )  # fmt: skip
    def test_refused(self, text: str) -> None:
        with pytest.raises(Invalid) as caught:
            parse(text)
        assert caught.value.code == "bad_reference"


class TestFinding:
    def test_a_package_is_found_and_never_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tmp_path / "limbeck_test_weights" / "model"
        model.mkdir(parents=True)
        (model.parent / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
        (model / "config.json").write_text('{"model_type": "bert"}', "utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        reference = parse("package:limbeck_test_weights/model")
        assert locate(reference, tmp_path) == model
        assert read_config(reference, tmp_path) == {"model_type": "bert"}
        assert "limbeck_test_weights" not in sys.modules

    def test_a_link_out_of_the_folder_is_not_followed(self, tmp_path: Path) -> None:
        models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
        models.mkdir()
        elsewhere.mkdir()
        (models / "link").symlink_to(elsewhere)
        with pytest.raises(Missing):
            locate(parse("file:link"), models)

    @pytest.mark.parametrize("text", ["package:no_such_package/model", "file:none", "hub:org/name"])
    def test_what_is_not_here(self, text: str, tmp_path: Path) -> None:
        with pytest.raises(Missing) as caught:
            locate(parse(text), tmp_path)
        assert caught.value.code == "reference_not_found"
        assert read_config(parse(text), tmp_path) is None
