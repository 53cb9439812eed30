"""What an operator does beside the running service: `python -P -m app.admin migrate | first-key | verify`.

Each prints one JSON object on standard output, which the command line renders, and exits with 0 if all is well.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from app import security
from models import migrations
from models.artifacts import Store
from models.database import Database
from models.errors import LimbeckError
from models.settings import Settings
from models.tables import Dataset, Key, Student, Teacher, new_id

KEY_FILE = "admin.key"
Outcome = dict[str, Any]


def migrate(settings: Settings, database: Database) -> Outcome:
    """Bring the schema to this version's. Safe to run twice, and by several at once."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrations.upgrade(database)
    return {"ok": True, "current": migrations.is_current(database)}


def first_key(settings: Settings, database: Database) -> Outcome:
    """Make an admin key if there is no key at all, and keep its secret in the data folder, for its owner's eyes."""
    path = settings.data_dir / KEY_FILE
    with database.writing() as session:
        if session.scalar(select(func.count()).select_from(Key)):
            return {"ok": True, "created": False, "path": str(path) if path.exists() else None}
        row, secret = security.make_key("default", ["admin"], name="first key")
        row.id = new_id("key")
        session.add(row)
        session.flush()
        # Written before the commit: a key that nobody has must not be the one that keeps others from being made.
        _write_private(path, secret + "\n")
    return {"ok": True, "created": True, "key_id": row.id, "path": str(path)}


def verify(settings: Settings, database: Database) -> Outcome:
    """Look at everything that is remembered: the schema, the database's own check, and the hash of every artifact."""
    problems: list[dict[str, str]] = []
    counts = {"datasets": 0, "teachers": 0, "students": 0, "exports": 0}
    if not migrations.is_current(database):
        return {"ok": False, "problems": [{"what": "schema", "message": "is not this version's; run migrate"}]}
    store = Store(settings.artifacts, settings.cache_folder / "artifacts")
    with database.reading() as session:
        if database.engine.dialect.name == "sqlite":
            answer = session.scalar(text("PRAGMA integrity_check"))
            if answer != "ok":
                problems.append({"what": "database", "message": str(answer)[:200]})
        datasets = session.execute(
            select(Dataset.id, Dataset.artifact, Dataset.sha256).where(Dataset.status == "ready")
        )
        exports = select(Student.teacher_artifact).where(Student.teacher_artifact.is_not(None)).distinct()
        files = [(row.id, row.artifact, row.sha256) for row in datasets]
        folders = [
            *((row.id, row.artifact, "teachers") for row in session.execute(select(Teacher.id, Teacher.artifact))),
            *((row.id, row.artifact, "students") for row in session.execute(select(Student.id, Student.artifact))),
            *((f"{key} (a teacher's export)", key, "exports") for key in session.scalars(exports)),
        ]
    for id_, key, digest in files:
        counts["datasets"] += 1
        _check(problems, id_, lambda key=key, digest=digest: store.fetch_file(key, sha256=digest))  # type: ignore[misc]
    for id_, key, noun in folders:
        counts[noun] += 1
        _check(problems, id_, lambda key=key: store.fetch_folder(key))  # type: ignore[misc]
    return {"ok": not problems, "checked": counts, "problems": problems}


def _check(problems: list[dict[str, str]], what: str, look: Callable[[], Path]) -> None:
    try:
        look()
    except LimbeckError as error:
        problems.append({"what": what, "message": error.message})


def _write_private(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


COMMANDS: Mapping[str, Callable[[Settings, Database], Outcome]] = {
    "migrate": migrate,
    "first-key": first_key,
    "verify": verify,
}


def main(arguments: list[str]) -> int:
    command = COMMANDS.get(arguments[0]) if len(arguments) == 1 else None
    if command is None:
        return _say({"ok": False, "error": f"usage: python -P -m app.admin {' | '.join(COMMANDS)}"}, 2)
    try:
        settings = Settings()
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        database = Database(settings.database)
        try:
            outcome = command(settings, database)
        finally:
            database.close()
    except LimbeckError as error:
        return _say({"ok": False, "error": error.message, "hint": error.hint}, 1)
    except (SQLAlchemyError, OSError) as error:
        cause = getattr(error, "orig", error)
        return _say({"ok": False, "error": f"{type(error).__name__}: {str(cause)[:300]}"}, 1)
    return _say(outcome, 0 if outcome["ok"] else 1)


def _say(outcome: Outcome, code: int) -> int:
    sys.stdout.write(json.dumps(outcome) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
