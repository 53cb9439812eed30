"""A trainer in small: it speaks the protocol and trains nothing. What it does is the name of its job.

Run as a script, with the pid of its worker as its argument, as the real one is.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from models.artifacts import write_manifest

work = Path()


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def hear() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        os._exit(70)
    heard: dict[str, Any] = json.loads(line)
    return heard


def publish(*, teacher: bool = False) -> NoReturn:
    folder = work / "student"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    bounds = {"confidence": 0.95, "drop": {"upper_one_sided": 0.01, "confidence": 0.95}}
    report = {
        "format": 1,
        "verdict": "It will do.",
        "rows": {"test": 100},
        "comparisons": bounds,
        "arms": {"distilled": {"agreement_lower_bound": 0.9}},
    }
    (folder / "report.json").write_text(json.dumps(report))
    write_manifest(folder, kind="student", labels=["a", "b"])
    say(type="result", folder=str(folder), teacher=export_teacher() if teacher else None)
    sys.exit(0)


def export_teacher() -> str:
    folder = work / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": "teacher"}')
    write_manifest(folder, kind="teacher", labels=["a", "b"])
    return str(folder)


def wait_for_stop() -> NoReturn:
    while (reason := hear().get("stop")) is None:
        pass
    say(type="stopped", reason=reason)
    sys.exit(0)


def main() -> None:  # noqa: C901, PLR0912 - a list of things to do
    global work  # noqa: PLW0603
    assignment = hear()
    work = Path(assignment["work"])
    (work / "pid").write_text(str(os.getpid()))
    say(type="phase", phase="preflight")
    say(type="event", code="environment", message="", data={"names": sorted(os.environ), "niceness": os.nice(0)})
    for step in range(3):
        say(type="metric", arm="distilled", stage=0, phase=0, name="loss", step=step, value=1 / (step + 1))
    say(type="progress", progress=0.5, eta_seconds=3.0)
    match assignment["spec"]["name"]:
        case "succeed":
            publish()
        case "succeed with a teacher":
            publish(teacher=True)
        case "finish anyway with a teacher":
            while hear().get("stop") is None:
                pass
            publish(teacher=True)
        case "babble":
            sys.stdout.write("I am a library and I print.\n" + "x" * 3_000_000 + "\n{}\n")
            publish()
        case "obey":
            wait_for_stop()
        case "save when asked":
            for folder in map(Path, assignment["previous"]):
                if (folder / "saved").is_file():
                    say(type="event", code="went_on", message="It goes on.")
                    publish()
            while (reason := hear().get("stop")) is None:
                pass
            (work / "saved").touch()
            say(type="checkpoint", step=1, path=str(work))
            say(type="stopped", reason=reason)
        case "obey when told to":
            while (reason := hear().get("stop")) is None:
                pass
            (work / "told").touch()
            while not (work / "go").exists():
                time.sleep(0.05)
            say(type="stopped", reason=reason)
        case "finish anyway":
            while hear().get("stop") is None:
                pass
            publish()
        case "deaf":
            time.sleep(600)
        case "fail":
            say(type="error", code="diverged", message="the loss is not a number", hint="slower", pointer="/schedule")
        case "crash":
            sys.stderr.write("Traceback: the library broke\n")
            os.abort()
        case "crash after a checkpoint":
            say(type="checkpoint", step=1, path=str(work / "checkpoints"))
            os.abort()
        case "leave a child":
            child = subprocess.Popen(["sleep", "600"])  # which holds the pipe open
            (work / "child").write_text(str(child.pid))
            publish()
        case other:
            say(type="error", code="unknown", message=f"no job is named {other!r}")


if __name__ == "__main__":
    main()
