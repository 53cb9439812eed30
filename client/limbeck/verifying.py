"""A student's folder on this machine: every file against its manifest, and the student's hash computed anew."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.objects import FileCheck, Verification

MANIFEST = "manifest.json"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
"""The names that a student's files may have: "..", absolute paths and drive letters are never published."""
IDENTITY = re.compile(
    r"config\.json|.*\.safetensors|.*\.safetensors\.index\.json"
    r"|tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(?:txt|json)|merges\.txt|.*\.model"
)
"""The files that make a student the student that it is: weights, config and tokenizer."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def student_hash(hashes: Mapping[str, str]) -> str:
    """SHA-256 over the names and hashes of weights, config and tokenizer: format 1 of a manifest."""
    lines = [f"{name}\0{hashes[name]}\n" for name in sorted(hashes) if IDENTITY.fullmatch(name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises `LimbeckError` where the folder has no manifest of a student."""
    try:
        document = json.loads((folder / MANIFEST).read_text("utf-8"))
    except OSError as error:
        raise LimbeckError(
            f"{folder} has no {MANIFEST} that can be read",
            hint="limbeck students download ID FOLDER writes one",
        ) from error
    except ValueError as error:
        raise LimbeckError(f"the {MANIFEST} of {folder} is not JSON: it is damaged") from error
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        raise LimbeckError(f"the {MANIFEST} of {folder} is not a student's")
    return document


def verify_folder(folder: Path) -> Verification:
    """Damage is in the answer; raises `LimbeckError` only where there is no manifest to compare with."""
    manifest = read_manifest(folder)
    checks = [_checked(folder, name, entry) for name, entry in sorted(manifest["files"].items())]
    found = student_hash({one.path: one.sha256 for one in checks if one.sha256 is not None})
    unknown = sorted(_names(folder) - {*manifest["files"], MANIFEST})
    checks += [FileCheck(path=name, ok=False, problem="is not in the manifest") for name in unknown]
    expected = str(manifest.get("student_hash", ""))
    ok = found == expected and all(one.ok for one in checks)
    raw = {"ok": ok, "hash": expected, "found_hash": found, "files": [_raw(one) for one in checks]}
    return Verification(ok=ok, hash=expected, found_hash=found, files=checks, raw=raw)


def _checked(folder: Path, name: str, entry: Any) -> FileCheck:
    path = folder / name
    expected = entry.get("sha256") if isinstance(entry, dict) else None
    if not PLAIN.fullmatch(name) or path.is_symlink():
        return FileCheck(path=name, ok=False, problem="is a link, or has a name that no student's file has")
    try:
        digest = sha256(path)
    except FileNotFoundError:
        return FileCheck(path=name, ok=False, problem="is missing")
    except OSError as error:
        return FileCheck(path=name, ok=False, problem=f"cannot be read: {error.strerror or error}")
    problem = None if digest == expected else "is not the file that was published"
    return FileCheck(path=name, ok=problem is None, sha256=digest, problem=problem)


def _names(folder: Path) -> set[str]:
    """Names that begin with a dot are not the student's."""
    return {
        Path(root, name).relative_to(folder).as_posix()
        for root, _, files in os.walk(folder)
        for name in files
        if not name.startswith(".")
    }


def _raw(check: FileCheck) -> dict[str, Any]:
    return {"path": check.path, "sha256": check.sha256, "ok": check.ok, "problem": check.problem}
