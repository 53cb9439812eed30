"""The service as processes: the API and a worker, started as `limbeck up` and docker-compose.yml start them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck import Client
from limbeck.errors import LimbeckError
from models.settings import Settings
from tests.servers import leashed, wait_until

ROOT = Path(__file__).parents[1]


@contextmanager
def processes(settings: Settings, *, database_url: str = "", broker_url: str = "") -> Iterator[Client]:
    """A client of an API process and a worker process over `settings.data_dir`; both must stop in order."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LIMBECK_DATA_DIR": str(settings.data_dir),
        "LIMBECK_DATABASE_URL": database_url,
        "LIMBECK_BROKER_URL": broker_url,
        "LIMBECK_LEASE_TTL": "6",
        "LIMBECK_SWEEP_INTERVAL": "1",
        "LIMBECK_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for verb in ("migrate", "first-key"):
        command = [sys.executable, "-P", "-m", "app.admin", verb]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for module, *rest in (["app.main", "--host", "127.0.0.1", "--port", str(port)], ["worker.main"]):
        with (settings.data_dir / f"{module}.log").open("wb") as log:
            command = leashed(sys.executable, "-P", "-m", module, *rest)
            running.append(subprocess.Popen(command, env=environment, stderr=log, stdin=subprocess.DEVNULL))
    secret = (settings.data_dir / "admin.key").read_text("utf-8").strip()
    with Client(f"http://127.0.0.1:{port}", secret) as client:

        def ready() -> bool:
            try:
                return bool(client.workers())
            except LimbeckError:
                return False

        try:
            wait_until(ready, 60)
            yield client
        finally:
            for process in running:
                process.terminate()
            ended = [process.wait(30) for process in running]
    assert ended == [0, 0]
