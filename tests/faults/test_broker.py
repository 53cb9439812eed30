"""F8: the broker is away, refuses, or takes connections and never answers, while jobs are submitted.

A caller notices nothing, and the job starts within ten seconds of the broker's return.
"""

import csv
import time
from pathlib import Path

import pytest

from limbeck import Client
from models.settings import Settings
from tests.factories import tiny_rows, tiny_teacher
from tests.processes import processes
from tests.servers import Valkey, wait_until

SUBMISSIONS = 100


def p99(client: Client, dataset: str) -> float:
    """Milliseconds of `POST /jobs`, the slowest but one of a hundred; the jobs are left waiting."""
    spec = {
        "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32},
        "dataset": {"id": dataset},
        "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": {"epochs": 1}}],
        "student": {"kind": "from_teacher", "layers": 1},
        # Where nobody works: what is measured is the submission, not a trainer beside it.
        "resources": {"device": "gpu"},
    }
    times = []
    for _ in range(SUBMISSIONS):
        began = time.perf_counter()
        job = client.jobs.submit(spec)
        times.append(1000 * (time.perf_counter() - began))
        assert job.status == "queued"
    return sorted(times)[-2]


def starts_within(client: Client, dataset: str, seconds: float, broker: Valkey | None) -> float:
    """Submit a job while the broker is as it is, bring the broker back, and time how long the job still waits."""
    job = client.jobs.submit(
        {
            "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32},
            "dataset": {"id": dataset},
            "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": {"epochs": 1}}],
            "student": {"kind": "from_teacher", "layers": 1},
        }
    )
    if broker is not None:
        (broker.start if broker.process is None else broker.resume)()
    began = time.monotonic()
    wait_until(lambda: client.jobs.get(job.id).status != "queued", seconds)
    waited = time.monotonic() - began
    client.jobs.cancel(job.id)
    wait_until(lambda: client.jobs.get(job.id).status == "cancelled", 30)
    return waited


@pytest.mark.valkey
@pytest.mark.timeout(200)
@pytest.mark.parametrize("fault", ["absent", "refused", "black hole"])
def test_nobody_waits_for_the_broker(fault: str, settings: Settings, valkey: Valkey, tmp_path: Path) -> None:
    tiny_teacher(settings.models_folder / "tiny")
    rows = tmp_path / "rows.csv"
    with rows.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*tiny_rows(120), strict=True)])
    with processes(settings, broker_url="" if fault == "absent" else valkey.url) as client:
        dataset = client.datasets.upload(rows).id
        if fault == "refused":
            valkey.stop()
        if fault == "black hole":
            valkey.suspend()
        slowest = p99(client, dataset)
        waited = starts_within(client, dataset, 10, None if fault == "absent" else valkey)
        print(f"broker {fault}: p99 of POST /jobs {slowest:.0f} ms; the job began {waited:.1f} s after its return")
        assert slowest < 300
