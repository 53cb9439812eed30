"""Processes of this machine that belong to a running `limbeck up`: started, looked after, stopped. Not what they do.

Each has a log file and a session of its own, so that a Ctrl-C in the terminal reaches `up` alone, and dies with its
parent (launcher.py). The parent-death signal follows the thread that spawned: start them from the main thread.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import CannotStart

_LAUNCHER = Path(__file__).with_name("launcher.py")
_SOON = 10.0
_LONGEST_PAUSE = 30.0
_LOG_LINES = 12


@dataclass(frozen=True)
class Command:
    """What to run, in which folder and environment, and where its output goes."""

    name: str
    arguments: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    log: Path


class Child:
    """One process that is started again when it ends by itself."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = 0.0
        self._again_at: float | None = None
        self._log_from = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        self._again_at = None
        self._started = time.monotonic()
        self.command.log.parent.mkdir(parents=True, exist_ok=True)
        with self.command.log.open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_LAUNCHER), str(os.getpid()), *self.command.arguments],
                cwd=self.command.folder,
                env=dict(self.command.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def look_after(self, say: Callable[[str], None]) -> None:
        """Start it again if it has ended: at once the first time, and ever later while it does not stay up."""
        if self.running:
            return
        now = time.monotonic()
        if self._again_at is None:
            if now - self._started > _SOON:
                self._pause = 0.0
            self._again_at = now + self._pause
            after = f" in {self._pause:g} s" if self._pause else ""
            say(f"the {self.command.name} ended ({_reason(self.exit_code)}); it is started again{after}{self._words()}")
            self._pause = min(_LONGEST_PAUSE, max(1.0, self._pause * 2))
        if now >= self._again_at:
            self.restarts += 1
            self.start()

    def ask_to_stop(self) -> None:
        if self._process is not None and self.running:
            self._process.terminate()

    def kill(self) -> None:
        """End it and what it started in its process group."""
        if self._process is not None:
            if self.running:
                try:
                    os.killpg(self._process.pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """The last lines that the running process, or the last one, has written."""
        try:
            with self.command.log.open("rb") as log:
                log.seek(max(self._log_from, self.command.log.stat().st_size - 20_000))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LOG_LINES:])

    def _words(self) -> str:
        """Its last line, which for an exception is the sentence, and where the rest is."""
        lines = [line.strip() for line in self.log_tail().splitlines() if line.strip()]
        return "".join(f"\n  {line[:300]}" for line in (*lines[-1:], f"log: {self.command.log}"))


def stop(children: Sequence[Child], *, seconds: float, hurry: Callable[[], bool]) -> None:
    """Ask all of them to end, and kill what has not after `seconds`, or as soon as `hurry` says so."""
    for child in children:
        child.ask_to_stop()
    until = time.monotonic() + seconds
    while any(child.running for child in children) and time.monotonic() < until and not hurry():
        time.sleep(0.05)
    for child in children:
        child.kill()


def run(command: Command, *, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a short command to its end; its output is in the answer, and nothing goes to the log."""
    try:
        return subprocess.run(
            [sys.executable, "-P", str(_LAUNCHER), str(os.getpid()), *command.arguments],
            cwd=command.folder,
            env=dict(command.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotStart(f"{command.name} did not end within {seconds:g} s") from error


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            pass
    return f"exit code {code}"
