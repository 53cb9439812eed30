"""Start a command that cannot outlive its parent: `python -P launcher.py PARENT_PID COMMAND…`.

`limbeck up` starts everything through this file, so that even a SIGKILL of `up` leaves no process behind. On Linux the
kernel sends the signal, and this process becomes the command. Elsewhere it stays, and watches its parent.
It is run as a file and imports nothing of its package: it must be there at once.
"""

import ctypes
import os
import platform
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5


def main(arguments: list[str]) -> int:
    parent, command = int(arguments[0]), arguments[1:]
    if platform.system() == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            return 1
        os.execv(command[0], command)  # noqa: S606 - no shell is meant
    return _watch(parent, command)


def _watch(parent: int, command: list[str]) -> int:
    """Pass SIGTERM on to the command, and kill it when the parent is gone."""
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while (code := child.poll()) is None:
        if os.getppid() != parent:
            child.kill()
        time.sleep(_WATCH_SECONDS)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
