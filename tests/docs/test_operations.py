"""docs/operations.md: each operation of the API, with the page, the command and the verb that ask for it."""

import re
from operator import attrgetter
from pathlib import Path

import pytest

from app.main import create_app
from app.security import Rules
from limbeck import Client
from models.settings import Settings
from tests.client.test_cli_operations import COMMANDS

TABLE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.splitlines()
    if line.startswith(("| `GET", "| `POST", "| `PUT", "| `DELETE"))
]
OTHERS = ("/v1/", "/v2")


def name_in(cell: str) -> str | None:
    """What a cell names, if it is no hole."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    return None if found is None else found[1]


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The operations and the pages of the real one."""
    folder = tmp_path_factory.mktemp("application")
    app = create_app(Settings(data_dir=folder, database_url="", broker_url="", artifacts_url=""))
    operations = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if not path.startswith(OTHERS)
    }
    return {"operations": operations, "pages": {rule.path for rule in Rules.of(app, max_body_bytes=1).all}}


def test_every_operation_stands_in_the_table(application: dict[str, set[str]]) -> None:
    assert [name_in(row[0]) for row in ROWS].count(None) == 0
    assert {name_in(row[0]) for row in ROWS} == application["operations"]


def test_pages_are_there(application: dict[str, set[str]]) -> None:
    named = {page for row in ROWS if (page := name_in(row[1])) is not None}
    assert named
    assert named <= application["pages"]


def test_commands_are_those_of_the_command_line() -> None:
    assert {name_in(row[0]): command for row in ROWS if (command := name_in(row[2])) is not None} == {
        operation: f"limbeck {command}" for operation, command in COMMANDS.items()
    }


def test_verbs_are_those_of_the_client() -> None:
    with Client("http://127.0.0.1:9", "lk_") as client:
        for row in ROWS:
            verb = name_in(row[3])
            if verb is not None:
                assert callable(attrgetter(verb.removeprefix("client."))(client)), verb


def test_a_hole_says_why() -> None:
    for row in ROWS:
        for cell in row[1:]:
            assert name_in(cell) is not None or re.fullmatch(r"– \(.{5,}\)", cell), row
