"""YAML and JSON as people write them, with the lines of their parts."""

from pathlib import Path

import pytest
import yaml

from limbeck.cli.documents import read_document
from limbeck.errors import LimbeckError, Problem


def _file(tmp_path: Path, text: str, name: str = "job.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("no", "no"),
            ("on", "on"),
            ("2024-01-01", "2024-01-01"),
            ("1e-4", 1e-4),
            ("5", 5),
            ("-2.5", -2.5),
            ("010", 10),
            ("0x1F", "0x1F"),
            (".inf", ".inf"),
            ("true", True),
            ("'true'", "true"),
            ("~", None),
            ("", None),
            ("hub:org/name@main", "hub:org/name@main"),
            ("[1, two, {x: 3}]", [1, "two", {"x": 3}]),
        ],
    )
    def test_scalars_are_those_of_json(self, tmp_path: Path, text: str, value: object) -> None:
        found = read_document(_file(tmp_path, f"it: {text}\n"), "").value["it"]
        assert found == value
        assert type(found) is type(value)

    def test_keys_are_texts(self, tmp_path: Path) -> None:
        assert read_document(_file(tmp_path, "0: a\nno: b\n"), "").value == {"0": "a", "no": "b"}

    def test_a_plain_document_is_what_safe_load_reads(self, tmp_path: Path) -> None:
        text = "a: &one [x, 1]\nb: *one\nc: |\n  two\n  lines\nd: {e: 'f', g: 1.5}\n"
        assert read_document(_file(tmp_path, text), "").value == yaml.safe_load(text)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: the key 'c' stands here a second time"),
            ("a: 1\nb: [1\n", "not YAML, line 3"),
            ("a:\n\tb: 1\n", "not YAML, line 2"),
            ("a: !!python/object/apply:os.getcwd []\n", "line 1: the tag !!python/object/apply:os.getcwd"),
            ("a: 1\nb: !!binary aGk=\n", "line 2: the tag !!binary"),
            ("a: &x [*x]\n", "nested too deeply"),
            ("? [1, 2]\n: 3\n", "line 1: a key must be a text"),
            ("- 1\n", "does not hold a YAML mapping"),
            ("", "does not hold a YAML mapping"),
            ("a: 1\n---\nb: 2\n", "not YAML, line 2"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(LimbeckError) as raised:
            read_document(_file(tmp_path, text), "")
        assert words in raised.value.message

    def test_a_tag_that_would_make_an_object_makes_none(self, tmp_path: Path) -> None:
        target = tmp_path / "made"
        text = f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{target}']]\n"
        with pytest.raises(LimbeckError, match="is not read here"):
            read_document(_file(tmp_path, text), "")
        assert not target.exists()

    def test_aliases_that_multiply(self, tmp_path: Path) -> None:
        text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
        )
        with pytest.raises(LimbeckError, match="too large"):
            read_document(_file(tmp_path, text), "")


class TestLines:
    TEXT = "name: x\ntask:\n  kind: k\n\nteachers:\n  - kind: local\n    model: m\n  - {kind: self}\n'a/b~c': 1\n"

    @pytest.mark.parametrize(
        ("pointer", "line"),
        [
            ("", 1),
            ("/task", 2),
            ("/task/kind", 3),
            ("/task/label", 2),
            ("/teachers/0/model", 7),
            ("/teachers/1", 8),
            ("/teachers/1/generations", 8),
            ("/a~1b~0c", 9),
            ("/student", 1),
        ],
    )
    def test_of_a_pointer_or_of_what_is_above_it(self, tmp_path: Path, pointer: str, line: int) -> None:
        path = _file(tmp_path, self.TEXT)
        assert read_document(path, "").where(pointer) == f"{path}:{line}"

    def test_beside_the_pointer(self, tmp_path: Path) -> None:
        path = _file(tmp_path, self.TEXT)
        assert read_document(path, "").located(Problem("/name", "is wrong")) == f"/name  {path}:1"


class TestJson:
    def test_by_its_name_or_its_first_sign(self, tmp_path: Path) -> None:
        assert read_document(_file(tmp_path, '{"a":\t1}', "job"), "").value == {"a": 1}
        assert read_document(_file(tmp_path, '{"a": "\\ud83d\\ude00"}', "job.json"), "").value == {"a": "😀"}

    def test_a_key_that_stands_twice(self, tmp_path: Path) -> None:
        with pytest.raises(LimbeckError, match="'a' twice"):
            read_document(_file(tmp_path, '{"b": {"a": 1, "a": 2}}', "job.json"), "")

    def test_has_no_lines(self, tmp_path: Path) -> None:
        assert read_document(_file(tmp_path, '{"a": 1}', "job.json"), "").located(Problem("/a", "")) == "/a"


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(LimbeckError, match="not UTF-8"):
        read_document(path, "")
