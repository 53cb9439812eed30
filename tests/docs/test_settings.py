"""docs/settings.md has every variable with its default, and none that is gone."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from app.main import Serve
from limbeck import address
from models.settings import Settings

ROOT = Path(__file__).parents[2]
ROWS = dict(
    re.findall(r"^\| `LIMBECK_(\w+)` \| (.+?) \|", (ROOT / "docs/settings.md").read_text("utf-8"), re.MULTILINE)
)
CLIENTS = {"URL", "API_KEY"}


def _shown(value: Any) -> str:
    match value:
        case None:
            return "*(none)*"
        case "":
            return "*(empty)*"
        case bool() | list():
            return f"`{json.dumps(value)}`"
        case _:
            return f"`{value}`"


def _defaults(*kinds: type[BaseSettings]) -> dict[str, str]:
    return {name.upper(): _shown(field.get_default()) for kind in kinds for name, field in kind.model_fields.items()}


def test_every_variable_stands_there_with_its_default() -> None:
    assert {name: default for name, default in ROWS.items() if name not in CLIENTS} == _defaults(Settings, Serve)


def test_the_clients_variables_are_those_that_it_reads() -> None:
    source = Path(address.__file__).read_text("utf-8")
    assert ROWS.keys() >= CLIENTS
    assert all(f"LIMBECK_{name}" in source for name in CLIENTS)
