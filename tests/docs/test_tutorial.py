"""The blocks of docs/tutorial.md are one script: every command of it must succeed, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.house import free_port

PAGE = Path(__file__).parents[2] / "docs/tutorial.md"


def script(page: str) -> str:
    """The page's shell blocks, as a script that stops at the first command that fails."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    heads = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    return "\n".join([*heads, *(f"echo '--- block {number}'\n{block}" for number, block in enumerate(blocks, 1))])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_block_of_the_tutorial_runs(tmp_path: Path) -> None:
    port = str(free_port())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["VIRTUAL_ENV"] = sys.prefix
    text = script(PAGE.read_text("utf-8")).replace("8123", port)
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    folder = tmp_path / "tutorial/student"
    assert (folder / "model.safetensors").is_file()
    assert "gate_failed" in done.stdout
    assert "block 12" in done.stdout
