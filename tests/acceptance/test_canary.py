"""A deployment under a steady load, on an API process of its own: 50 calls a second, whether or not answers come.

Latencies count from when a call was due, so that a service that stalls cannot hide it by being asked less.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from scipy.stats import binom
from sqlalchemy import select

from models.artifacts import Store
from models.database import Database
from models.settings import Settings
from models.tables import ArmCount, Student, new_id
from tests.factories import tiny_rows
from tests.processes import ROOT
from tests.servers import leashed, wait_until
from tests.students import published

CALLS_PER_SECOND = 50
TEXTS = tiny_rows(40)[0]


@dataclass(frozen=True)
class Answer:
    status: int
    seconds: float
    headers: httpx2.Headers


class Load:
    """Calls of /predict, each at its time."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client
        self.threads = ThreadPoolExecutor(16)

    def run(self, seconds: float, deployment: str) -> list[Answer]:
        began = time.perf_counter()
        calls = []
        for number in range(round(seconds * CALLS_PER_SECOND)):
            due = began + number / CALLS_PER_SECOND
            time.sleep(max(0.0, due - time.perf_counter()))
            calls.append(self.threads.submit(self._call, deployment, TEXTS[number % len(TEXTS)], due))
        return [call.result() for call in calls]

    def _call(self, deployment: str, text: str, due: float) -> Answer:
        answer = self.client.post(f"/predict/{deployment}", json={"inputs": text})
        return Answer(answer.status_code, time.perf_counter() - due, answer.headers)


@dataclass(frozen=True)
class Service:
    client: httpx2.Client
    load: Load
    database: Database
    students: tuple[str, str]

    def put(self, name: str, **wanted: Any) -> None:
        answer = self.client.put(f"/deployments/{name}", json=wanted)
        assert answer.status_code in {200, 201}, answer.text

    def compared(self, arm: str) -> int:
        with self.database.reading() as session:
            return sum(session.scalars(select(ArmCount.compared).where(ArmCount.arm == arm)))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    settings = Settings(data_dir=folder, database_url="", broker_url="", artifacts_url="")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}
    environment |= {"PYTHONPATH": str(ROOT), "LIMBECK_DATA_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    for verb in ("migrate", "first-key"):
        command = [sys.executable, "-P", "-m", "app.admin", verb]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    database = Database(settings.database)
    store = Store(settings.artifacts, settings.cache_folder / "artifacts")
    students = tuple(_student(database, store, published(folder / f"made-{seed}", seed=seed)) for seed in (0, 1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "app.log").open("wb") as log:
        command = leashed(sys.executable, "-P", "-m", "app.main", "--host", "127.0.0.1", "--port", str(port))
        process = subprocess.Popen(command, env=environment, stderr=log, stdin=subprocess.DEVNULL)
    secret = (folder / "admin.key").read_text("utf-8").strip()
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
        try:
            wait_until(lambda: _is_ready(client), 60)
            yield Service(client, Load(client), database, (students[0], students[1]))
        finally:
            process.terminate()
            ended = process.wait(30)
            database.close()
    assert ended == 0


def _student(database: Database, store: Store, folder: Path) -> str:
    id_ = new_id("st")
    manifest = store.publish(folder, f"students/{id_}")
    row = Student(
        id=id_,
        owner="default",
        name="",
        job_id=new_id("job"),
        hash=manifest.student_hash,
        artifact=f"students/{id_}",
        manifest=manifest.model_dump(mode="json"),
        report={"format": 1, "verdict": "It is small.", "gate": {"passed": True, "checks": []}},
    )
    with database.writing() as session:
        session.add(row)
    return id_


def _is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def test_a_tenth_of_the_calls_go_to_the_canary(service: Service) -> None:
    stable, canary = service.students
    service.put("canary", student=stable, canary={"student": canary, "fraction": 0.1})
    answers = service.load.run(20, "canary")
    assert {answer.status for answer in answers} == {200}
    by_canary = sum(answer.headers["X-Limbeck-Arm"] == "canary" for answer in answers)
    assert by_canary == sum(answer.headers["X-Limbeck-Student"] == canary for answer in answers)
    least, most = binom.interval(0.999, len(answers), 0.1)
    print(f"{by_canary} of {len(answers)} calls by the canary; 99.9 % of such samples have {least:.0f} to {most:.0f}")
    assert least <= by_canary <= most
    # Copies for which no core was free were dropped.
    wait_until(lambda: by_canary / 2 < service.compared("canary") <= by_canary, 10)


@pytest.mark.long
def test_a_shadow_slows_nobody(service: Service) -> None:
    stable, shadow = service.students
    seconds: dict[bool, list[float]] = {True: [], False: []}
    ratio = 0.0
    # Short windows in turn: what else runs on the machine comes to both. Where it drowns them, more of them.
    for _ in range(3):
        for shadowed in (False, True, True, False) * 5:
            service.put("shadow", student=stable, **({"shadow": {"student": shadow}} if shadowed else {}))
            service.load.run(0.1, "shadow")
            answers = service.load.run(1, "shadow")
            assert {(answer.status, answer.headers["X-Limbeck-Student"]) for answer in answers} == {(200, stable)}
            seconds[shadowed] += [answer.seconds for answer in answers]
        with_shadow, without = (float(np.percentile(seconds[shadowed], 95)) for shadowed in (True, False))
        ratio = with_shadow / without
        print(f"p95 {1000 * with_shadow:.1f} ms with a shadow, {1000 * without:.1f} ms without: {ratio:.2f} times")
        if ratio < 1.5:
            break
    wait_until(lambda: service.compared("shadow") > len(seconds[True]) / 2, 10)
    assert ratio < 1.5


@pytest.mark.long
def test_no_promotion_and_no_rollback_loses_a_call(service: Service) -> None:
    one, two = service.students
    service.put("live", student=one)
    with ThreadPoolExecutor(1) as beside:
        answers = beside.submit(service.load.run, 12, "live")
        for move in range(20):
            if move % 2 == 0:
                service.put("live", student=two)
            else:
                answer = service.client.post("/deployments/live/rollback")
                assert (answer.status_code, answer.json()["student"]) == (200, one)
            time.sleep(0.5)
        assert not answers.done()
        found = answers.result()
    assert {answer.status for answer in found} == {200}
    by = [answer.headers["X-Limbeck-Student"] for answer in found]
    assert set(by) == {one, two}
    print(f"{len(found)} calls over 20 moves, none lost; {by.count(one)} and {by.count(two)} by the two students")
