"""Documents that people write: YAML or JSON, and the line on which a part of one stands.

YAML is read by its 1.2 core schema: `no`, `on` and dates are texts, `1e-4` is a number, and every key is a text. No
tag makes an object. A key that stands twice in one mapping is refused, in either language.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import LimbeckError, Problem

_DEEPEST = 100
_MOST_PARTS = 100_000
_TAGS = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Document:
    """What a file holds. `lines` has the line (from 1) of each part by its JSON pointer; empty where it is JSON."""

    file: str
    value: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict, repr=False)

    def where(self, pointer: str) -> str:
        """`job.yaml:12` for a pointer into the document, or for the nearest part above it; "" where nobody knows."""
        while pointer and pointer not in self.lines:
            pointer = pointer.rpartition("/")[0]
        return f"{self.file}:{self.lines[pointer]}" if pointer in self.lines else ""

    def located(self, problem: Problem) -> str:
        """The pointer of a problem with the line on which it stands."""
        line = self.where(problem.pointer)
        return f"{problem.pointer or '/'}  {line}".rstrip()


def read_document(file: Path, hint: str) -> Document:
    """The YAML or JSON object in a file; `-` is standard input. `hint` says what kind of object is wanted."""
    name = "standard input" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise LimbeckError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LimbeckError(f"{file} is not UTF-8: {error}") from error
    is_json = file.suffix.lower() == ".json" or text.lstrip()[:1] in {"{", "["}
    value, lines = _json(name, text) if is_json else _yaml(name, text)
    if not isinstance(value, dict):
        raise LimbeckError(f"{name} does not hold {'a JSON object' if is_json else 'a YAML mapping'}", hint=hint)
    return Document(name, value, lines)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json(name: str, text: str) -> tuple[Any, dict[str, int]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise LimbeckError(f"{name} has the key {key!r} twice in one object", hint="keep one of them")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique), {}
    except (ValueError, RecursionError) as error:
        raise LimbeckError(f"{name} is not JSON: {error}") from error


# --- YAML -------------------------------------------------------------------------------------------------------------


class _Core(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2: its own are those of 1.1."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Core.add_implicit_resolver(f"{_TAGS}{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _yaml(name: str, text: str) -> tuple[Any, dict[str, int]]:
    loader = _Core(text)
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        value = None if node is None else _value(name, node, "", lines, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        hint = "indent with spaces" if "\\t" in str(error.problem) else None
        raise LimbeckError(f"{name} is not YAML{line}: {error.problem or error.context}", hint=hint) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise LimbeckError(f"{name} is not YAML: {error}") from error
    finally:
        loader.dispose()
    return value, lines


def _value(name: str, node: yaml.Node, pointer: str, lines: dict[str, int], depth: int) -> Any:
    """The value of a node. Aliases can make a small file a large value, or one without an end."""
    if depth > _DEEPEST or len(lines) > _MOST_PARTS:
        raise LimbeckError(f"{name} is too large or nested too deeply at {pointer[:80]}")
    lines.setdefault(pointer, node.start_mark.line + 1)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in {f"{_TAGS}map", f"{_TAGS}seq"}:
        raise _unknown_tag(name, node)
    match node:
        case yaml.MappingNode():
            found: dict[str, Any] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise LimbeckError(f"{name}, line {line}: a key must be a text")
                if key.value in found:
                    raise LimbeckError(
                        f"{name}, line {line}: the key {key.value!r} stands here a second time",
                        hint="keep one of them",
                    )
                at = f"{pointer}/{key.value.replace('~', '~0').replace('/', '~1')}"
                lines[at] = line
                found[key.value] = _value(name, value, at, lines, depth + 1)
            return found
        case yaml.SequenceNode():
            return [_value(name, item, f"{pointer}/{place}", lines, depth + 1) for place, item in enumerate(node.value)]
        case _:
            return _scalar(name, node)


def _scalar(name: str, node: yaml.Node) -> Any:
    match node.tag.removeprefix(_TAGS):
        case "str":
            return node.value
        case "null":
            return None
        case "bool":
            return node.value.lower() == "true"
        case "int":
            return int(node.value)
        case "float":
            return float(node.value)
        case _:
            raise _unknown_tag(name, node)


def _unknown_tag(name: str, node: yaml.Node) -> LimbeckError:
    tag = node.tag.replace(_TAGS, "!!")
    return LimbeckError(f"{name}, line {node.start_mark.line + 1}: the tag {tag} is not read here")
