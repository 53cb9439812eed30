"""docs/errors.md names every stable code of the code base, with the status that it answers, and none that is gone.

The codes are read from the sources: what is given as `code`, to whichever function of the house; the third argument of
`Problem`; the types of our own validation errors; the class attributes of `models/errors.py`. What a job or an import
only warns of is beside them: codes in pairs with a sentence.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.errors import STATUSES
from models import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/errors.md").read_text("utf-8")
SOURCES = [
    path
    for room in ("app", "models", "worker")
    for path in sorted((ROOT / room).rglob("*.py"))
    if "versions" not in path.parts and path.name != "examples.py"
]
CODE = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
BY_CLASS = {kind.__name__: str(status) for kind, status in STATUSES.items()}
EVENTS = {"tell", "tell_of_job", "_asked"}
"""What these take as a `code` is an event of a job."""
OF_THE_STATUS = {"version_mismatch": "412", "storage_full": "507", "method_not_allowed": "405"}
"""These have a status of their own, whatever class of error carries them."""


@dataclass(frozen=True)
class Use:
    code: str
    status: str | None
    """The status of the error that is raised here; None where another function raises it."""


def _constants(trees: list[ast.Module]) -> dict[str, str]:
    """The text constants of all modules by name, such as `UNHEALTHY = "student_unhealthy"`."""
    return {
        target.id: node.value.value
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _texts(node: ast.expr, constants: dict[str, str]) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=one, orelse=other):
            return [*_texts(one, constants), *_texts(other, constants)]
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return [constants[name]] if name in constants else []
        case _:
            return []


def _positions(tree: ast.Module) -> dict[str, int]:
    """Where each function of a module takes a `code`, if it takes it by position."""
    return {
        node.name: names.index("code")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for names in [[argument.arg for argument in node.args.args if argument.arg != "self"]]
        if "code" in names
    }


def _defaults(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                if argument.arg == "code" and default is not None:
                    yield default


def _given(tree: ast.Module, positions: dict[str, int]) -> Iterator[tuple[str, ast.expr]]:
    """Every expression that becomes a code, with the name of what takes it."""
    for node in ast.walk(tree):
        match node:
            case ast.Call():
                yield from _given_in_call(node, positions)
            case ast.ClassDef(name=name, body=body):
                codes = [part.value for part in body if isinstance(part, ast.Assign) and _names_code(part)]
                yield from ((name, code) for code in codes)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                yield from (
                    ("", value) for key, value in pairs if isinstance(key, ast.Constant) and key.value == "code"
                )
    yield from (("", default) for default in _defaults(tree))


def _given_in_call(call: ast.Call, positions: dict[str, int]) -> Iterator[tuple[str, ast.expr]]:
    name = ast.unparse(call.func).split(".")[-1]
    if name in EVENTS:
        return
    yield from ((name, word.value) for word in call.keywords if word.arg == "code")
    place = {"Problem": 2, "PydanticCustomError": 0}.get(name, positions.get(name))
    if place is not None and len(call.args) > place:
        yield name, call.args[place]


def _names_code(part: ast.Assign) -> bool:
    return ast.unparse(part.targets[0]) == "code"


def _uses() -> set[Use]:
    trees = [ast.parse(path.read_text("utf-8")) for path in SOURCES]
    constants = _constants(trees)
    return {
        Use(text, BY_CLASS.get(name))
        for tree in trees
        for name, node in _given(tree, _positions(tree))
        for text in _texts(node, constants)
        if CODE.fullmatch(text)
    } | {Use(text, None) for text in _derived()}


def _derived() -> Iterator[str]:
    """The codes that pydantic's own errors become."""
    tree = ast.parse((ROOT / "models/specs/parsing.py").read_text("utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.AnnAssign)
            and ast.unparse(node.target) == "_CODES"
            and isinstance(node.value, ast.Dict)
        ):
            yield from (str(value.value) for value in node.value.values if isinstance(value, ast.Constant))


def _remarks() -> set[str]:
    """The codes of warnings: `warn(code, …)`, `Remark(code, …)`, and pairs of a code and a sentence."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="warn") | ast.Name(id="Remark"), args=[ast.Constant(value=str(code)), *_]
                ):
                    found.add(code)
                case ast.Tuple(elts=[ast.Constant(value=str(code)), ast.JoinedStr() | ast.Name(id="message")]):
                    found.add(code)
    return {code for code in found if CODE.fullmatch(code)} - {"fp32", "int8"}


def _rows(heading: str) -> dict[str, list[str]]:
    """The rows of the tables below a heading of the second level, by the code in their first column."""
    part = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert part, heading
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|(.*)\|$", part[1], re.MULTILINE)
    return {code: [cell.strip() for cell in rest.split(" | ")] for code, rest in rows}


USES = _uses()
TOLD = {use.code for use in USES}


def test_every_code_has_a_row_and_every_row_a_code() -> None:
    rows = {**_rows("What a request is answered"), **_rows("What a job ends with")}
    assert TOLD - rows.keys() == set()
    assert rows.keys() - TOLD == set()


def test_every_row_has_a_status_a_cause_and_a_remedy() -> None:
    for code, cells in _rows("What a request is answered").items():
        assert [bool(cell) for cell in cells] == [True] * 3, code
    for code, cells in _rows("What a job ends with").items():
        assert [bool(cell) for cell in cells] == [True] * 2, code


def test_the_statuses_are_those_of_the_errors_that_are_raised() -> None:
    rows = _rows("What a request is answered")
    wrong = {
        (use.code, status)
        for use in USES
        if use.status is not None and use.code in rows
        for status in [OF_THE_STATUS.get(use.code, use.status)]
        if status not in rows[use.code][0]
    }
    assert not wrong


def test_every_class_of_error_has_its_code_in_the_page() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LimbeckError)]
    assert {kind.code for kind in kinds} <= TOLD


def test_every_warning_has_a_row_and_every_row_a_warning() -> None:
    rows, remarks = _rows("What is only a warning"), _remarks()
    assert remarks - rows.keys() == set()
    assert rows.keys() - remarks - TOLD == set()


@pytest.mark.parametrize(
    "code", ["unknown_field", "student_unhealthy", "unsafe_weights", "bad_config", "poison", "one_price"]
)
def test_the_search_finds_each_way_to_give_a_code(code: str) -> None:
    assert code in TOLD
