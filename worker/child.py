"""The trainer as a process: spawned in a group of its own with a clean environment, heard line by line, killed whole.

Knows what a line is, and not what it says.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

TRAINER = (sys.executable, "-P", "-m", "worker.trainer")
_KEPT = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
"""All that a trainer gets of this process's environment: no LIMBECK_*, no AWS_*, no key of any kind."""
_LONGEST_LINE = 1 << 20
_TAIL_BYTES = 8192
_HOUSE = Path(__file__).resolve().parents[1]


class Child:
    """A running trainer. The thread that makes it must outlive it: the parent-death signal follows that thread."""

    def __init__(self, command: Sequence[str], folder: Path, extra: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment(extra),
            start_new_session=True,
        )
        self.lines: queue.Queue[bytes | None] = queue.Queue(10_000)
        """What it says, and None when it will say no more."""
        self._tail: deque[bytes] = deque()
        self._writing = threading.Lock()
        self._killed = False
        self._readers = [
            threading.Thread(target=self._read_lines, name="trainer-stdout", daemon=True),
            threading.Thread(target=self._read_tail, name="trainer-stderr", daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tail(self) -> str:
        """The last of what it wrote to standard error."""
        return b"".join(self._tail)[-_TAIL_BYTES:].decode("utf-8", "replace")

    def send(self, line: str) -> None:
        """One line to its standard input; a trainer that has gone hears nothing, and that is no error."""
        with self._writing, suppress(OSError, ValueError):
            stdin = _pipe(self._process.stdin)
            stdin.write(line.encode() + b"\n")
            stdin.flush()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def next_line(self, seconds: float) -> bytes | None:
        """The next line, or an empty one if none comes in time; None when it has ended and all is said."""
        try:
            return self.lines.get(timeout=seconds)
        except queue.Empty:
            if self.ended and not self._killed:
                # Its own children may live and hold the pipe open: with them gone it ends, and None comes.
                self._kill_group()
            return b""

    def kill(self) -> int:
        """End whatever is left of its group; the exit status of the trainer, negative for a signal."""
        self._kill_group()
        status = self._process.wait()
        for reader in self._readers:
            reader.join(timeout=5)
        with self._writing, suppress(OSError):
            _pipe(self._process.stdin).close()
        return status

    def _kill_group(self) -> None:
        self._killed = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read_lines(self) -> None:
        stream = _pipe(self._process.stdout)
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                self.lines.put(line)
        self.lines.put(None)

    def _read_tail(self) -> None:
        stream = _pipe(self._process.stderr)
        size = 0
        with stream:
            while line := stream.readline(_TAIL_BYTES):
                self._tail.append(line)
                size += len(line)
                while size - len(self._tail[0]) > _TAIL_BYTES:
                    size -= len(self._tail.popleft())


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a trainer's environment is made of, and nothing else."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    if _HOUSE.name not in ("site-packages", "dist-packages"):
        # A checkout: with -P the working directory is not on the path, and installed packages come first as ever.
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_HOUSE), kept.get("PYTHONPATH")]))
    # Equal seeds give equal runs: sets are iterated alike, and cuBLAS sums in one order.
    fixed = {"PYTHONHASHSEED": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return {**kept, **fixed, **extra}


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process has no such pipe")
    return stream
