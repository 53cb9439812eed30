"""House rules that are tests: who imports whom, what is never called, and that what is documented exists.

The layers themselves are import-linter contracts (`make check`); here stands what they cannot say.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ("app", "models", "worker", "client/limbeck")
SOURCES = [path for room in HOUSE for path in sorted((ROOT / room).rglob("*.py")) if "versions" not in path.parts]


def _calls(tree: ast.AST) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_and_no_remote_code(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    } | {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not imported & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
    assert not {call for call in _calls(tree) if call in {"torch.load", "eval", "exec", "os.system"}}
    trusting = [
        keyword
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code"
        and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert not trusting


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_imported_inside_a_function(path: Path) -> None:
    """A lazy import hides a circle, or a cost that the user pays later."""
    tree = ast.parse(path.read_text("utf-8"))
    lazy = [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not lazy


def test_only_entry_points_read_the_environment() -> None:
    """Below an entry point a setting is an argument: two services in one process must not share what they read."""
    entries = {"app/main.py", "app/admin.py", "worker/main.py", "worker/trainer.py", "models/migrations/env.py"}
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        if name.startswith("client") or name in entries:
            continue
        assert "Settings()" not in path.read_text("utf-8"), name


def test_the_api_loads_no_torch() -> None:
    heavy = ("torch", "transformers", "sklearn", "scipy")
    code = f"import sys, app.main; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_the_supervisor_loads_no_torch() -> None:
    code = "import sys, worker.main; print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert answer.stdout.strip() == "False"


def test_readme_has_a_line_for_every_file() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    missing = [
        str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py" and path.name not in readme
    ]
    assert not missing


def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := len(path.read_text("utf-8").splitlines())) > 700
    }
    assert not long
