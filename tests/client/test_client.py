"""`Client` and `AsyncClient` against the real service."""

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal

from limbeck import ApiError, Client, DownloadDamaged, LimbeckError, WaitTimeout
from limbeck.objects import Event, Job
from models import workers
from tests.client.awaited import awaited
from tests.client.stand_ins import ScriptedWorker, Service, spec_of
from tests.client.wire import Wire
from tests.factories import tiny_teacher


@pytest.fixture(params=["blocking", "awaited"])
def client(request: pytest.FixtureRequest, service: Service, key: str, portal: BlockingPortal) -> Iterator[Client]:
    if request.param == "blocking":
        with Client(service.url, key) as found:
            yield found
    else:
        with awaited(portal, service.url, key) as found:
            yield found


class TestDatasets:
    def test_upload_get_rows_delete(self, client: Client, csv_file: Path) -> None:
        made = client.datasets.upload(csv_file, name="tweets")
        assert (made.name, made.rows, made.status) == ("tweets", 60, "ready")
        assert [column["name"] for column in made.columns] == ["text", "label"]
        assert client.datasets.get(made) == made
        rows = client.datasets.rows(made, limit=3, offset=1)
        assert len(rows) == 3
        assert set(rows[0]) == {"text", "label"}
        assert rows.has_more
        client.datasets.delete(made)
        with pytest.raises(ApiError) as caught:
            client.datasets.get(made.id)
        assert (caught.value.status, caught.value.code) == (404, "not_found")

    def test_its_name_is_the_files(self, client: Client, csv_file: Path) -> None:
        assert client.datasets.upload(csv_file).name.startswith("rows")

    def test_a_bad_row_names_its_line(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "bad.csv"
        path.write_text("text,label\na,b\nc,d,e\n")
        with pytest.raises(ApiError) as caught:
            client.datasets.upload(path)
        assert caught.value.status == 422
        assert "3" in str(caught.value)

    def test_bytes_that_are_no_text(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "latin.csv"
        path.write_bytes("text,label\ncaf\xe9 au lait,good\ntea,bad\n".encode("latin-1"))
        with pytest.raises(ApiError):
            client.datasets.upload(path)
        replaced = client.datasets.upload(path, errors="replace")
        assert "�" in client.datasets.rows(replaced)[0]["text"]
        named = client.datasets.upload(path, encoding="latin-1")
        assert client.datasets.rows(named)[0]["text"] == "café au lait"

    def test_a_file_that_is_not_there(self, client: Client, tmp_path: Path) -> None:
        with pytest.raises(LimbeckError, match="there is no file"):
            client.datasets.upload(tmp_path / "none.csv")

    def test_pages(self, client: Client, csv_file: Path) -> None:
        made = [client.datasets.upload(csv_file).id for _ in range(3)]
        first = client.datasets.list(limit=2)
        assert [item.id for item in first] == [made[2], made[1]]
        assert first.has_more
        assert client.datasets.list(limit=1, after=made[1])[0].id == made[0]
        assert [item.id for item in client.datasets.all()][:3] == made[::-1]


class TestTeachers:
    def test_upload_and_delete(self, client: Client, tmp_path: Path) -> None:
        folder = tiny_teacher(tmp_path / "teacher")
        (folder / "pytorch_model.bin").write_bytes(b"a pickle, which is left here")
        made = client.teachers.upload(folder)
        assert made.name == "teacher"
        assert made.reference == f"teacher:{made.id}"
        assert made.config["model_type"] == "bert"
        assert client.teachers.get(made) == made
        assert made.id in {item.id for item in client.teachers.list()}
        client.teachers.delete(made)

    def test_a_folder_that_is_none(self, client: Client, csv_file: Path) -> None:
        with pytest.raises(LimbeckError, match="not a folder"):
            client.teachers.upload(csv_file)


class TestJobs:
    def test_submit_is_idempotent(self, client: Client, spec: dict[str, Any]) -> None:
        key = str(uuid.uuid4())
        one = client.jobs.submit(spec, idempotency_key=key)
        assert client.jobs.submit(spec, idempotency_key=key).id == one.id
        assert client.jobs.submit(spec).id != one.id
        with pytest.raises(ApiError) as caught:
            client.jobs.submit({**spec, "seed": 7}, idempotency_key=key)
        assert caught.value.code == "idempotency_key_reused"

    def test_every_problem_at_once(self, client: Client, spec: dict[str, Any]) -> None:
        del spec["task"]["text"]
        with pytest.raises(ApiError) as caught:
            client.jobs.submit({**spec, "seed": -1, "wrong": 1})
        assert {problem.pointer for problem in caught.value.problems} == {"/task/text", "/seed", "/wrong"}

    def test_validate_says_and_raises_nothing(self, client: Client, spec: dict[str, Any]) -> None:
        before = len(list(client.jobs.all()))
        good = client.jobs.validate(spec)
        assert good.valid
        assert good.resolved_spec is not None
        assert "stages" in good.resolved_spec
        bad = client.jobs.validate(spec_of("ds_00000000"))
        assert not bad.valid
        assert bad.problems[0].pointer == "/dataset/id"
        assert len(list(client.jobs.all())) == before

    def test_list_by_status_and_name(self, client: Client, spec: dict[str, Any]) -> None:
        name = f"by name {uuid.uuid4()}"
        job = client.jobs.submit({**spec, "name": name})
        assert [item.id for item in client.jobs.list(name=name, status=["queued", "running"])] == [job.id]
        assert not client.jobs.list(name=name, status="failed").data

    def test_cancel_and_delete(self, client: Client, spec: dict[str, Any]) -> None:
        job = client.jobs.submit(spec)
        assert client.jobs.cancel(job).status == "cancelled"
        assert client.jobs.cancel(job).ended
        client.jobs.delete(job)
        with pytest.raises(ApiError):
            client.jobs.get(job)

    def test_pause_and_resume(self, client: Client, spec: dict[str, Any]) -> None:
        job = client.jobs.submit(spec)
        assert client.jobs.pause(job).status == "paused"
        assert client.jobs.resume(job).status == "queued"

    def test_compare(self, service: Service, client: Client, spec: dict[str, Any]) -> None:
        jobs = [client.jobs.submit({**spec, "seed": seed}) for seed in (1, 2)]
        worker = ScriptedWorker(service, jobs[1].id)
        worker.claim()
        worker.progress()
        found = client.jobs.compare(jobs, "loss")
        assert list(found) == [job.id for job in jobs]
        assert [point.value for point in found[jobs[1].id]] == [0.7, 0.6]
        assert not found[jobs[0].id]

    def test_wait_is_told_of_every_change(self, service: Service, client: Client, spec: dict[str, Any]) -> None:
        job = client.jobs.submit(spec)
        worker = ScriptedWorker(service, job.id)
        threading.Timer(0.4, worker.claim).start()
        threading.Timer(0.9, worker.progress).start()
        threading.Timer(1.4, worker.fail).start()
        seen: list[Job] = []
        ended = client.jobs.wait(job, timeout=20, on_update=seen.append)
        assert ended.status == "failed"
        assert ended.error is not None
        assert (ended.error.code, ended.error.hint) == ("diverged", "lower the learning rate")
        assert not ended.succeeded
        assert seen[0].status == "queued"
        assert any(item.phase == "distil" and item.progress == 0.5 for item in seen)
        points = client.jobs.metrics(job, name="loss")
        assert [(point.arm, point.step, point.value) for point in points] == [
            ("distilled", 1, 0.7),
            ("distilled", 2, 0.6),
        ]

    def test_wait_that_is_over(self, client: Client, spec: dict[str, Any]) -> None:
        job = client.jobs.submit(spec)
        began = time.monotonic()
        with pytest.raises(WaitTimeout) as caught:
            client.jobs.wait(job, timeout=0.5)
        assert time.monotonic() - began < 5
        assert caught.value.job.status == "queued"

    def test_events_follow_over_a_wire_that_breaks(
        self, service: Service, key: str, client: Client, spec: dict[str, Any], wire: Wire
    ) -> None:
        """Each event once and in order, however often the stream is cut."""
        job = client.jobs.submit(spec)
        worker = ScriptedWorker(service, job.id)
        worker.claim()
        seen: list[Event] = []

        def follow() -> None:
            with Client(wire.url, key) as other:
                seen.extend(other.jobs.events(job))

        follower = threading.Thread(target=follow)
        follower.start()
        for step in range(3):
            time.sleep(0.4)
            wire.cut()
            worker.say(f"note {step}")
        time.sleep(0.4)
        worker.fail()
        follower.join(30)
        assert not follower.is_alive()
        numbers = [event.seq for event in seen]
        assert numbers == sorted(set(numbers))
        assert [event.message for event in seen if event.code == "note"] == ["note 0", "note 1", "note 2"]
        assert seen[-1].code == "failed"
        assert [event.raw for event in client.jobs.events(job, follow=False)] == [event.raw for event in seen]
        assert wire.connections >= 2

    def test_events_of_a_job_that_is_none(self, client: Client) -> None:
        with pytest.raises(ApiError):
            list(client.jobs.events("job_none"))


class TestStudents:
    def test_what_is_known(self, client: Client, student: str) -> None:
        found = client.students.get(student)
        assert (found.name, found.task, found.gate_passed) == ("tiny", "text-classification", True)
        assert student in {item.id for item in client.students.list(name="tiny")}
        assert client.students.report(found)["verdict"] == found.verdict

    def test_download(self, client: Client, student: str, student_folder: Path, tmp_path: Path) -> None:
        folder = client.students.download(student, tmp_path / "copy")
        copied = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert copied == {path.name: path.read_bytes() for path in student_folder.iterdir()}
        fetched: list[str] = []
        (folder / "config.json").write_text("{}")
        client.students.download(student, folder, on_file=lambda file, new: fetched.append(file.path) if new else None)
        assert fetched == ["config.json"]

    def test_a_damaged_download_leaves_nothing(
        self, service: Service, client: Client, student: str, tmp_path: Path
    ) -> None:
        artifact = service.settings.data_dir / "artifacts" / "students" / student
        damaged = bytearray((artifact / "model.safetensors").read_bytes())
        damaged[-1] ^= 1
        (artifact / "model.safetensors").write_bytes(damaged)
        with pytest.raises(LimbeckError) as caught:
            client.students.download(student, tmp_path / "copy")
        assert isinstance(caught.value, DownloadDamaged)
        left = [path.name for path in (tmp_path / "copy").iterdir()]
        assert "model.safetensors" not in left
        assert "manifest.json" not in left
        assert not [name for name in left if name.endswith(".part")]

    def test_files_match_their_hashes(self, client: Client, student: str, student_folder: Path) -> None:
        for file in client.students.files(student):
            assert hashlib.sha256((student_folder / file.path).read_bytes()).hexdigest() == file.sha256

    def test_delete(self, client: Client, student: str) -> None:
        client.deployments.put("in-use", student)
        with pytest.raises(ApiError) as caught:
            client.students.delete(student)
        assert caught.value.code == "student_deployed"
        client.deployments.delete("in-use")
        client.students.delete(student)


class TestDeployments:
    def test_put_predict_rollback(self, client: Client, student: str) -> None:
        made = client.deployments.put("sentiment", student)
        assert (made.student, made.version) == (student, 1)
        assert client.deployments.put("sentiment", student) == made
        assert client.deployments.get("sentiment") == made
        assert "sentiment" in {item.name for item in client.deployments.list()}
        one = client.predict("sentiment", "what a lovely day")
        assert one.student == student
        assert len(one) == 1
        assert {item.label for item in one[0]} == {"negative", "neutral", "positive"}
        assert sum(item.score for item in one[0]) == pytest.approx(1, abs=1e-4)
        assert [item.score for item in one[0]] == sorted((item.score for item in one[0]), reverse=True)
        assert one.server_timing
        assert "infer" in one.server_timing
        many = client.predict("sentiment", ["a", "b", "c"], top_k=1)
        assert [len(labels) for labels in many] == [1, 1, 1]
        with pytest.raises(ApiError) as caught:
            client.deployments.rollback("sentiment")
        assert caught.value.code == "nothing_before"
        with pytest.raises(ApiError) as caught:
            client.deployments.put("sentiment", student, if_match=9)
        assert caught.value.code == "version_mismatch"
        assert [change.verb for change in client.deployments.history("sentiment")] == ["put"]
        client.deployments.delete("sentiment", if_match=1)

    def test_a_deployment_that_is_none(self, client: Client) -> None:
        with pytest.raises(ApiError) as caught:
            client.predict("nowhere", "x")
        assert caught.value.status == 404


class TestKeys:
    def test_create_use_revoke(self, service: Service, client: Client) -> None:
        made = client.keys.create(["read"], name="for a test")
        assert made.key
        assert made.key not in repr(made)
        assert made.id in {item.id for item in client.keys.all()}
        with Client(service.url, made.key) as reader:
            reader.jobs.list()
            with pytest.raises(ApiError) as caught:
                reader.keys.list()
            assert caught.value.status == 403
            client.keys.delete(made)
            time.sleep(1.2)
            with pytest.raises(ApiError) as caught:
                reader.jobs.list()
            assert caught.value.status == 401
            assert caught.value.hint


class TestSecrets:
    def test_put_list_delete(self, client: Client) -> None:
        made = client.secrets.put("hub-token", "hf_very_secret")
        assert made.name == "hub-token"
        assert "hf_very_secret" not in repr(made.raw)
        assert client.secrets.get("hub-token") == made
        assert "hub-token" in {item.name for item in client.secrets.list()}
        client.secrets.delete("hub-token")
        with pytest.raises(ApiError) as caught:
            client.secrets.get("hub-token")
        assert caught.value.status == 404


class TestWebhooks:
    def test_create_test_delete(self, client: Client) -> None:
        made = client.webhooks.create("https://example.org/hook", ["job.succeeded"])
        assert made.events == ["job.succeeded"]
        assert made.signing_secret
        assert made.signing_secret not in repr(made)
        assert made.id in {item.id for item in client.webhooks.all()}
        sent = client.webhooks.test(made)
        assert sent.webhook_id == made.id
        assert [item.id for item in client.webhooks.deliveries(made)] == [sent.id]
        client.webhooks.delete(made)
        assert made.id not in {item.id for item in client.webhooks.list()}


def test_ready_needs_no_key(service: Service) -> None:
    with Client(service.url, "") as stranger:
        assert stranger.ready().status == "ready"
        assert stranger.workers.__name__ == "workers"


def test_workers(service: Service, client: Client) -> None:
    with service.database.writing() as session:
        workers.seen(
            session, worker_id="wk_test", host="here", pid=1, device="cpu", device_name="a processor", slots=2, jobs=[]
        )
    found = next(worker for worker in client.workers() if worker.id == "wk_test")
    assert (found.host, found.slots, found.alive) == ("here", 2, True)
