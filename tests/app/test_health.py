"""Probes, the shape of errors, the process itself, and what an operator runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from app import admin, errors
from app.main import create_app
from models.database import Database
from models.errors import LimbeckError, Missing, Overloaded, StorageFailure, Unavailable
from models.settings import Settings
from models.tables import Worker, new_id
from tests.app.conftest import Api, bearer, eventually, running
from tests.app.test_jobs import spec

ROOT = Path(__file__).parents[2]


class TestProbes:
    def test_without_a_key(self, api: Api) -> None:
        api.client.headers.pop("Authorization")
        assert api.client.get("/healthz").json() == {"status": "ok"}
        ready = api.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert ready.json()["checks"]["broker"] == "none"

    def test_a_schema_that_is_behind(self, settings: Settings) -> None:
        settings.data_dir.mkdir()
        with TestClient(create_app(settings)) as client:
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["checks"]["migrations"]) == (503, "behind")

    def test_a_broker_that_is_away_degrades(self, settings: Settings) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # nobody listens
            url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
            with running(settings.model_copy(update={"broker_url": url})) as api:
                api.client.post("/jobs", json=spec(api.dataset()))
                eventually(lambda: api.client.get("/readyz").json()["status"] == "degraded")
                answer = api.client.get("/readyz")
                assert (answer.status_code, answer.json()["checks"]["broker"]) == (200, "unreachable")

    def test_stopping(self, api: Api) -> None:
        api.app.state.leaving = True
        assert api.client.get("/readyz").status_code == 503
        assert api.client.get("/healthz").status_code == 200

    def test_metrics_count_jobs_in_the_database(self, api: Api) -> None:
        api.job(status="running")
        api.job(status="running", owner="other")
        answer = api.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        assert 'limbeck_jobs{status="running"} 2.0' in answer.text

    def test_workers(self, api: Api) -> None:
        mine, theirs = api.job(), api.job(owner="other")
        now = time.time()
        with api.database.writing() as session:
            for host, seen in (("fresh", now), ("silent", now - 1000)):
                row = Worker(
                    id=new_id("wk"), host=host, pid=1, device="cpu", slots=1, jobs=[mine, theirs], seen_at=seen
                )
                session.add(row)
        found = {row["host"]: row for row in api.as_("read").get("/workers").json()["data"]}
        assert (found["fresh"]["alive"], found["silent"]["alive"]) == (True, False)
        assert found["fresh"]["jobs"] == [mine]

    def test_about(self, api: Api) -> None:
        assert api.client.get("/").url.path == "/ui/"
        schema = api.client.get("/openapi.json").json()
        assert schema["paths"]["/jobs"]["post"]["x-limbeck-scope"] == "jobs"
        assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        assert api.client.get("/docs").status_code == 404


class TestErrors:
    """One table from error to status."""

    @pytest.fixture
    def client(self) -> TestClient:
        app = FastAPI()
        errors.install(app)
        app.add_middleware(errors.Problems)
        raised: dict[str, Exception] = {
            "missing": Missing("gone", hint="look elsewhere"),
            "overloaded": Overloaded("full", retry_after=7.2),
            "unavailable": Unavailable("away"),
            "full": StorageFailure("no space", code="storage_full"),
            "bare": LimbeckError("hm"),
            "bug": KeyError("/srv/secret/path SELECT password"),
            "database": OperationalError("SELECT secret", {}, Exception("connection to db.internal failed")),
        }

        @app.get("/{name}")
        def raise_it(name: str) -> None:
            raise raised[name]

        return TestClient(app, raise_server_exceptions=False)

    @pytest.mark.parametrize(
        ("name", "status", "code"),
        [
            ("missing", 404, "not_found"),
            ("overloaded", 429, "overloaded"),
            ("unavailable", 503, "unavailable"),
            ("full", 507, "storage_full"),
            ("bare", 500, "internal_error"),
            ("bug", 500, "internal_error"),
            ("database", 503, "database_unavailable"),
        ],
    )
    def test_status(self, client: TestClient, name: str, status: int, code: str) -> None:
        answer = client.get(f"/{name}")
        body = answer.json()
        assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert body.keys() == {"type", "title", "status", "detail", "instance", "code", "request_id", "hint", "errors"}
        assert (body["instance"], body["request_id"]) == (f"/{name}", answer.headers["X-Request-Id"])
        assert ("retry-after" in answer.headers) == (status in {429, 503})
        for secret in ("secret", "SELECT", "internal ", "Traceback"):
            assert secret not in answer.text

    def test_retry_after(self, client: TestClient) -> None:
        assert client.get("/overloaded").headers["Retry-After"] == "7"

    def test_the_callers_request_id_is_kept_if_it_is_one(self, client: TestClient) -> None:
        assert client.get("/missing", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
        assert (
            client.get("/missing", headers={"X-Request-Id": "a b<script>"}).headers["X-Request-Id"].startswith("req_")
        )

    def test_addresses_and_methods(self, client: TestClient) -> None:
        assert client.get("/a/b").json()["code"] == "not_found"
        answer = client.put("/missing")
        assert (answer.status_code, answer.json()["code"], answer.headers["Allow"]) == (
            405,
            "method_not_allowed",
            "GET",
        )


class TestCommit:
    def test_is_before_the_answer(self, api: Api) -> None:
        """What a 2xx says is in the database by the time that its first byte leaves."""
        seen: list[int] = []
        database = Database(api.settings.database)
        inner = api.app.middleware_stack
        assert inner is not None

        async def watching(scope: Any, receive: Any, send: Any) -> None:
            async def look(message: Any) -> None:
                if message["type"] == "http.response.start":
                    with database.reading() as session:
                        seen.append(session.scalar(text("SELECT count(*) FROM keys")))
                await send(message)

            await inner(scope, receive, look)

        api.app.middleware_stack = watching
        before = len(api.client.get("/keys").json()["data"])
        assert api.client.post("/keys", json={"scopes": ["read"]}).status_code == 201
        database.close()
        assert seen == [before, before + 1]


def _run(*arguments: str, data: Path) -> tuple[int, Any]:
    environment = os.environ | {"LIMBECK_DATA_DIR": str(data), "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
    command = [sys.executable, "-P", "-m", "app.admin", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, cwd=data.parent, check=False
    )
    return done.returncode, json.loads(done.stdout)


class TestAdmin:
    def test_migrate_first_key_verify(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        assert _run("verify", data=data) == (
            1,
            {"ok": False, "problems": [{"what": "schema", "message": "is not this version's; run migrate"}]},
        )
        assert _run("migrate", data=data) == (0, {"ok": True, "current": True})
        code, made = _run("first-key", data=data)
        assert (code, made["created"]) == (0, True)
        path = Path(made["path"])
        assert path == data / "admin.key"
        assert path.stat().st_mode & 0o777 == 0o600
        secret = path.read_text().strip()
        assert _run("first-key", data=data)[1]["created"] is False
        assert path.read_text().strip() == secret
        assert _run("verify", data=data)[1]["ok"]
        with TestClient(
            create_app(Settings(data_dir=data, database_url="", broker_url="")), headers=bearer(secret)
        ) as client:
            assert client.get("/keys").status_code == 200

    def test_verify_finds_a_damaged_artifact(self, api: Api, student_folder: Path) -> None:
        student, dataset = api.student(student_folder), api.dataset()
        assert admin.verify(api.settings, api.database)["ok"]
        path = api.settings.data_dir / "artifacts" / "students" / student / "config.json"
        path.write_text("{}")
        outcome = admin.verify(api.settings, api.database)
        assert [problem["what"] for problem in outcome["problems"]] == [student]
        (api.settings.data_dir / "artifacts" / "datasets" / f"{dataset}.parquet").write_bytes(b"")
        assert len(admin.verify(api.settings, api.database)["problems"]) == 2

    def test_usage(self, tmp_path: Path) -> None:
        assert _run("dance", data=tmp_path / "d")[0] == 2


class TestProcess:
    """A real uvicorn."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        data = tmp_path / "data"
        _run("migrate", data=data)
        _run("first-key", data=data)
        return data

    @staticmethod
    def start(data: Path, *arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {"LIMBECK_DATA_DIR": str(data), "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
        command = [sys.executable, "-P", "-m", "app.main", *arguments]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=data
        )

    def test_starts_answers_polls_and_stops(self, data: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = self.start(data, "--port", str(port))
        try:
            client = httpx2.Client(
                base_url=f"http://127.0.0.1:{port}", headers=bearer((data / "admin.key").read_text().strip())
            )
            until = time.monotonic() + 30
            while True:
                try:
                    assert client.get("/readyz").status_code == 200
                    break
                except httpx2.TransportError:
                    assert time.monotonic() < until
                    time.sleep(0.05)
            assert client.get("/jobs").status_code == 200
            assert psutil.Process(process.pid).memory_info().rss < 200 * 1024**2
            client.close()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, logged = process.communicate(timeout=20)
        finally:
            process.kill()
        assert process.returncode == 0
        assert time.monotonic() - began < 5
        assert out == ""
        lines = [json.loads(line) for line in logged.splitlines()]
        assert {"started", "stopped"} <= {line["event"] for line in lines}
        assert not any(line.get("path") == "/readyz" and line["status"] == 200 for line in lines)
        assert any(line.get("path") == "/jobs" and line["status"] == 200 for line in lines)
        assert "lk_" not in logged

    def test_an_open_address_needs_a_key(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        _run("migrate", data=data)
        process = self.start(data, "--host", "0.0.0.0", "--port", "0")  # noqa: S104
        _, logged = process.communicate(timeout=30)
        assert process.returncode == 2
        assert "no key exists" in logged
