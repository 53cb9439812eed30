"""`python -m benchmarks.pages`: how soon pages are there, with a thousand jobs and one of many points.

The service runs as a process over a SQLite database of its own, made here; a Chromium on the same machine asks it. To
first byte, until the page can be used (`domInteractive`), and until the curves are drawn.
"""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from playwright.sync_api import Page, sync_playwright

from app import security
from models import migrations, specs
from models.database import Database
from models.settings import Settings
from models.tables import Dataset, Job, Metric, new_id

JOBS = 1000
POINTS = 10_000
NAMES = ("loss", "validation_accuracy", "learning_rate", "examples_per_second", "soft_targets")
ARMS = ("distilled", "control")
_TIMING = (
    "(() => { const t = performance.getEntriesByType('navigation')[0]; return [t.responseStart, t.domInteractive]; })()"
)


_HEAD = f"""# Pages, measured

Written by `python -m benchmarks.pages`; do not edit. {JOBS:,} jobs in SQLite; browser and service share {{cores}}
cores; load average at the start {{load:.1f}}. Milliseconds: median (least to most) of {{rounds}} visits; *cold* is the
first one, which loads plotly.

| page | first byte | can be used | curves drawn | cold |
|---|--:|--:|--:|--:|
"""


@dataclass(frozen=True)
class Times:
    """Milliseconds."""

    first_byte: float
    interactive: float
    drawn: float | None


def fill(settings: Settings) -> tuple[str, str]:
    """The rows; the secret of a key, and the id of the job with the points."""
    database = Database(settings.database)
    migrations.upgrade(database)
    row, secret = security.make_key("default", ["admin"])
    row.id = new_id("key")
    document = {
        "name": "tweets",
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": "ds_benchmark"},
        "teachers": [{"kind": "local", "model": "file:teacher"}],
        "student": {"kind": "from_teacher", "layers": 2},
    }
    resolved = specs.resolve(specs.parse_job(document)).model_dump(mode="json")
    columns: list[Any] = [{"name": name, "type": "string", "nulls": 0, "examples": []} for name in ("text", "label")]
    dataset = Dataset(
        id="ds_benchmark", owner="default", name="tweets", columns=columns, rows=60, bytes=1, sha256="0", artifact="-"
    )
    dataset.warnings = []
    jobs = [
        Job(
            id=new_id("job"),
            owner="default",
            name=f"job {number}",
            status="succeeded",
            device="cpu",
            progress=1.0,
            spec=document,
            resolved_spec=resolved,
        )
        for number in range(JOBS)
    ]
    wanted = jobs[-1].id
    with database.writing() as session:
        session.add_all([row, dataset, *jobs])
    with database.writing() as session:
        session.bulk_insert_mappings(
            Metric,
            [
                {
                    "job_id": wanted,
                    "attempt": 1,
                    "stage": 0,
                    "phase": 0,
                    "arm": arm,
                    "name": name,
                    "step": step,
                    "value": 1 / (1 + step),
                }
                for name in NAMES
                for arm in ARMS
                for step in range(POINTS)
            ],
        )
    database.close()
    return secret, wanted


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The address of an API process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "LIMBECK_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-P", "-m", "app.main", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                httpx2.get(f"{address}/readyz", trust_env=False).raise_for_status()
                break
            except httpx2.HTTPError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def look(page: Page, address: str, *, curves: bool) -> Times:
    began = time.perf_counter()
    page.goto(address)
    drawn = None
    if curves:
        page.wait_for_selector("figure .plot svg .scatterlayer, figure .plot canvas", state="attached")
        drawn = (time.perf_counter() - began) * 1000
    first_byte, interactive = page.evaluate(_TIMING)
    return Times(first_byte, interactive, drawn)


def line(name: str, cold: Times, times: Sequence[Times]) -> str:
    def median(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"

    drawn = [one.drawn for one in times if one.drawn is not None]
    cells = (
        name,
        median([one.first_byte for one in times]),
        median([one.interactive for one in times]),
        median(drawn) if drawn else "–",
        f"{cold.drawn or cold.interactive:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def main(
    rounds: Annotated[int, typer.Option(min=3, help="Of each page, after one that does not count.")] = 15,
    out: Annotated[Path, typer.Option(help="The Markdown.")] = Path("docs/benchmarks/pages.md"),
) -> None:
    """Measure the list of jobs and the page of one."""
    browser_path = shutil.which("chromium")
    if browser_path is None:
        typer.echo("no Chromium is installed: apt-get install chromium", err=True)
        raise typer.Exit(2)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), database_url="", broker_url="", artifacts_url="")
        secret, job = fill(settings)
        load = os.getloadavg()[0]
        with serving(settings) as address, sync_playwright() as playwright:
            headers = {"Authorization": f"Bearer {secret}"}
            link = httpx2.post(f"{address}/ui/links", headers=headers, trust_env=False).json()["path"]
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.goto(address + link)
            lines = []
            for name, path, curves in (
                ("`/ui/`", "/ui/", False),
                ("`/ui/jobs`", "/ui/jobs", False),
                (f"`/ui/jobs/{{id}}`, {len(NAMES) * len(ARMS)} series of {POINTS:,} points", f"/ui/jobs/{job}", True),
            ):
                cold = look(page, address + path, curves=curves)
                times = [look(page, address + path, curves=curves) for _ in range(rounds)]
                lines.append(line(name, cold, times))
            browser.close()
    out.write_text(_HEAD.format(cores=os.cpu_count(), load=load, rounds=rounds) + "\n".join(lines) + "\n", "utf-8")
    typer.echo(out.read_text("utf-8"))


if __name__ == "__main__":
    typer.run(main)
