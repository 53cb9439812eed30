"""The routes of jobs. How a job's status changes is models.lifecycle's, and tested there."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from models.queue import Doorbell
from models.tables import Event, Job, Metric
from tests.app.conftest import Api, running
from tests.factories import tiny_config


def spec(dataset: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tweets",
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": dataset},
        "teachers": [{"kind": "local", "model": "file:teacher"}],
        "student": {"kind": "from_teacher", "layers": 1},
    } | changes


def change(api: Api, job: str, **columns: Any) -> None:
    with api.database.writing() as session:
        session.execute(update(Job).where(Job.id == job).values(version=Job.version + 1, **columns))


def happened(api: Api, job: str, code: str) -> None:
    with api.database.writing() as session:
        session.add(Event(job_id=job, attempt=1, code=code, message=code))


@pytest.fixture
def teacher(api: Api) -> Path:
    """The config.json of a teacher with four layers; the API needs no more."""
    folder = api.settings.models_folder / "teacher"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny_config(layers=4).to_dict()))
    return folder


class TestCreate:
    def test_answers_with_the_job_its_address_and_its_version(self, api: Api) -> None:
        document = spec(api.dataset())
        answer = api.client.post("/jobs", json=document)
        assert answer.status_code == 201, answer.text
        job = answer.json()
        assert answer.headers["Location"] == f"/jobs/{job['id']}"
        assert answer.headers["ETag"] == f'"{job["version"]}"'
        assert (job["status"], job["spec"], job["name"]) == ("queued", document, "tweets")
        assert job["resolved_spec"]["stages"][0]["phases"][0]["schedule"]["epochs"] == 3
        assert [event["code"] for event in api.client.get(f"/jobs/{job['id']}/events").json()["data"]] == ["queued"]

    def test_a_hundred_identical_posts_are_one_job(self, api: Api) -> None:
        document = spec(api.dataset())
        start = threading.Barrier(20)

        def post(number: int) -> tuple[int, str]:
            if number < 20:
                start.wait()
            answer = api.client.post("/jobs", json=document, headers={"Idempotency-Key": "one"})
            return answer.status_code, answer.json()["id"]

        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(post, range(100)))
        assert len(set(answers)) == 1
        assert answers[0][0] == 201
        assert len(api.client.get("/jobs").json()["data"]) == 1

    def test_a_key_with_another_body_is_a_conflict(self, api: Api) -> None:
        headers = {"Idempotency-Key": "one"}
        document = spec(api.dataset())
        first = api.client.post("/jobs", json=document, headers=headers)
        # The order of an object's members is not part of it.
        again = api.client.post("/jobs", json=dict(reversed(document.items())), headers=headers)
        assert first.json() == again.json()
        other = api.client.post("/jobs", json=document | {"seed": 1}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")

    def test_without_a_key_each_post_is_a_job(self, api: Api) -> None:
        document = spec(api.dataset())
        assert (
            api.client.post("/jobs", json=document).json()["id"] != api.client.post("/jobs", json=document).json()["id"]
        )

    def test_every_problem_at_once(self, api: Api) -> None:
        answer = api.client.post(
            "/jobs", json={"task": {"kind": "text-classification"}, "teachers": [], "colour": "red"}
        )
        assert answer.status_code == 422
        pointers = {error["pointer"] for error in answer.json()["errors"]}
        assert {"/task/text", "/task/label", "/dataset", "/teachers", "/colour"} <= pointers

    @pytest.mark.parametrize("body", [b"", b"nope", b"[]", b'"x"', b"null", b"[" * 50_000, b'{"name": "\\ud800"}'])
    def test_what_is_no_spec(self, api: Api, body: bytes) -> None:
        answer = api.client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}, answer.text
        assert answer.json()["code"]

    @pytest.mark.usefixtures("teacher")
    def test_what_the_database_and_the_config_know(self, api: Api) -> None:
        document = spec("ds_nothing", student={"kind": "from_teacher", "layers": [0, 4]})
        answer = api.client.post("/jobs", json=document)
        assert answer.status_code == 422
        pointers = [error["pointer"] for error in answer.json()["errors"]]
        assert pointers == ["/student/layers/1", "/dataset/id"]
        assert api.client.get("/jobs").json()["data"] == []

    def test_someone_elses_dataset(self, api: Api) -> None:
        answer = api.client.post("/jobs", json=spec(api.dataset(owner="stranger")))
        assert answer.json()["errors"][0]["pointer"] == "/dataset/id"

    def test_what_the_spec_has_and_this_version_has_not(self, api: Api) -> None:
        answer = api.client.post("/jobs", json=spec(api.dataset(), resources={"gpus": 2}))
        error = answer.json()["errors"][0]
        assert (answer.status_code, error["pointer"], error["code"]) == (422, "/resources/gpus", "not_available_yet")


class TestValidate:
    @pytest.mark.usefixtures("teacher")
    def test_creates_nothing(self, api: Api) -> None:
        answer = api.client.post("/jobs/validate", json=spec(api.dataset()))
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["valid"]
        assert found["resolved_spec"]["stages"][0]["student"]["layers"] == 1
        assert found["estimates"]["layers"] == {"teacher": 4, "student": 1}
        with api.database.reading() as session:
            assert session.scalar(select(func.count()).select_from(Job)) == 0

    def test_says_why_there_are_no_estimates(self, api: Api) -> None:
        found = api.client.post("/jobs/validate", json=spec(api.dataset())).json()
        assert found["estimates"] is None
        assert "file:teacher" in found["estimates_reason"]

    @pytest.mark.usefixtures("teacher")
    def test_more_layers_than_the_teacher_has(self, api: Api) -> None:
        document = spec(api.dataset(), student=None, stages=[{"student": {"kind": "from_teacher", "layers": 5}}])
        answer = api.client.post("/jobs/validate", json=document)
        error = answer.json()["errors"][0]
        assert (answer.status_code, error["pointer"], error["code"]) == (
            422,
            "/stages/0/student/layers",
            "impossible_layers",
        )


class TestList:
    def test_newest_first_by_pages(self, api: Api) -> None:
        jobs = [api.job(name=f"j{number}") for number in range(5)]
        first = api.client.get("/jobs?limit=3").json()
        assert [job["id"] for job in first["data"]] == jobs[:1:-1]
        assert first["has_more"]
        second = api.client.get(f"/jobs?limit=3&after={first['data'][-1]['id']}").json()
        assert [job["id"] for job in second["data"]] == jobs[1::-1]
        assert not second["has_more"]

    def test_by_status_and_name(self, api: Api) -> None:
        api.job(name="a", status="failed")
        wanted = api.job(name="a", status="running")
        api.job(name="b", status="running")
        assert [job["id"] for job in api.client.get("/jobs?status=running&name=a").json()["data"]] == [wanted]
        assert len(api.client.get("/jobs?status=running&status=failed").json()["data"]) == 3
        assert api.client.get("/jobs?status=asleep").status_code == 422
        assert api.client.get("/jobs?limit=101").json()["errors"][0]["pointer"] == "/query/limit"


class TestRead:
    def test_the_etag(self, api: Api) -> None:
        job = api.job()
        etag = api.client.get(f"/jobs/{job}").headers["ETag"]
        unchanged = api.client.get(f"/jobs/{job}", headers={"If-None-Match": etag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        change(api, job, progress=0.5)
        changed = api.client.get(f"/jobs/{job}", headers={"If-None-Match": etag})
        assert changed.status_code == 200
        assert changed.json()["progress"] == 0.5

    def test_waits_for_a_change(self, api: Api) -> None:
        job = api.job(status="running")
        threading.Timer(0.5, change, [api, job], {"phase": "distil"}).start()
        began = time.monotonic()
        answer = api.client.get(f"/jobs/{job}?wait=20")
        assert 0.4 < time.monotonic() - began < 3
        assert answer.json()["phase"] == "distil"

    def test_answers_when_the_time_is_up(self, api: Api) -> None:
        job = api.job(status="running")
        etag = api.client.get(f"/jobs/{job}").headers["ETag"]
        assert api.client.get(f"/jobs/{job}?wait=0.3").status_code == 200
        assert api.client.get(f"/jobs/{job}?wait=0.3", headers={"If-None-Match": etag}).status_code == 304
        assert api.client.get(f"/jobs/{job}?wait=61").status_code == 422

    def test_does_not_wait_for_what_has_ended_or_has_changed_already(self, api: Api) -> None:
        began = time.monotonic()
        assert api.client.get(f"/jobs/{api.job(status='succeeded')}?wait=20").status_code == 200
        assert api.client.get(f"/jobs/{api.job()}?wait=20", headers={"If-None-Match": '"0"'}).status_code == 200
        assert api.client.get("/jobs/job_nothing?wait=20").status_code == 404
        assert time.monotonic() - began < 2

    def test_many_who_wait_hold_no_connection(self, api: Api) -> None:
        """A hundred long-polls, and the others are answered at once."""
        job = api.job(status="running")
        with ThreadPoolExecutor(100) as threads:
            waiting = [threads.submit(api.client.get, f"/jobs/{job}?wait=4") for _ in range(100)]
            time.sleep(1)
            began = time.monotonic()
            assert api.client.get("/jobs").status_code == 200
            assert time.monotonic() - began < 1.5
            change(api, job, status="succeeded")
            assert {answer.result().json()["status"] for answer in waiting} == {"succeeded"}

    def test_shutting_down_answers_those_who_wait(self, api: Api) -> None:
        job = api.job(status="running")
        threading.Timer(0.4, setattr, [api.app.state, "leaving", True]).start()
        began = time.monotonic()
        assert api.client.get(f"/jobs/{job}?wait=20").status_code == 200
        assert time.monotonic() - began < 3


class TestEvents:
    def test_a_page(self, api: Api) -> None:
        job = api.job()
        for code in ("queued", "claimed", "published"):
            happened(api, job, code)
        page = api.client.get(f"/jobs/{job}/events?limit=2").json()
        assert [event["code"] for event in page["data"]] == ["queued", "claimed"]
        assert page["has_more"]
        rest = api.client.get(f"/jobs/{job}/events?after={page['data'][-1]['seq']}").json()
        assert [event["code"] for event in rest["data"]] == ["published"]

    def test_a_stream_ends_when_the_job_has_ended(self, api: Api) -> None:
        job = api.job(status="running")
        happened(api, job, "queued")

        def go_on() -> None:
            happened(api, job, "claimed")
            time.sleep(0.6)
            happened(api, job, "succeeded")
            change(api, job, status="succeeded")

        threading.Timer(0.3, go_on).start()
        events = self._stream(api, job)
        assert [event["code"] for _, event in events] == ["queued", "claimed", "succeeded"]
        # From where it broke off.
        rest = self._stream(api, job, last=events[0][0])
        assert rest == events[1:]

    def test_a_bad_last_event_id(self, api: Api) -> None:
        answer = api.client.get(f"/jobs/{api.job()}/events", headers={"Last-Event-ID": "soon"})
        assert answer.json()["errors"][0]["pointer"] == "/header/last-event-id"

    @staticmethod
    def _stream(api: Api, job: str, last: str | None = None) -> list[tuple[str, dict[str, Any]]]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        found = []
        with api.client.stream("GET", f"/jobs/{job}/events", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            id_ = ""
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    id_ = line[4:]
                if line.startswith("data: "):
                    found.append((id_, json.loads(line[6:])))
        return [(str(event["seq"]), event) for _, event in found]


class TestMetrics:
    @pytest.fixture
    def job(self, api: Api) -> str:
        job = api.job()
        with api.database.writing() as session:
            for step in range(1000):
                for arm in ("distilled", "control"):
                    point = Metric(
                        job_id=job, arm=arm, stage=0, phase=0, name="loss", step=step, value=1 / (step + 1), attempt=1
                    )
                    session.add(point)
            session.add(Metric(job_id=job, arm="distilled", stage=0, phase=0, name="rate", step=0, value=1, attempt=1))
        return job

    def test_series(self, api: Api, job: str) -> None:
        points = api.client.get(f"/jobs/{job}/metrics").json()["data"]
        assert len(points) == 2001
        assert points[0] == {"arm": "control", "stage": 0, "phase": 0, "name": "loss", "step": 0, "value": 1.0}
        assert len(api.client.get(f"/jobs/{job}/metrics?name=rate").json()["data"]) == 1

    def test_thinned_out(self, api: Api, job: str) -> None:
        points = api.client.get(f"/jobs/{job}/metrics?name=loss&points=11").json()["data"]
        steps = [point["step"] for point in points if point["arm"] == "control"]
        assert len(steps) == 11
        assert (steps[0], steps[-1]) == (0, 999)
        assert steps == sorted(set(steps))

    def test_compared(self, api: Api, job: str) -> None:
        other = api.job()
        points = api.client.get(f"/metrics/jobs?ids={job},{other}&name=rate").json()["data"]
        assert [point["job_id"] for point in points] == [job]
        assert api.client.get(f"/metrics/jobs?ids={job},job_nothing&name=rate").status_code == 404
        assert api.client.get("/metrics/jobs?ids=,&name=rate").status_code == 422


class TestCancelAndDelete:
    def test_cancel_is_idempotent(self, api: Api) -> None:
        job = api.client.post("/jobs", json=spec(api.dataset())).json()["id"]
        for _ in range(2):
            answer = api.client.post(f"/jobs/{job}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")

    def test_cancel_after_success_is_a_conflict(self, api: Api) -> None:
        assert api.client.post(f"/jobs/{api.job(status='succeeded')}/cancel").status_code == 409

    def test_delete_takes_ended_ones(self, api: Api) -> None:
        ended, waiting = api.job(status="failed"), api.job()
        happened(api, ended, "failed")
        assert api.client.delete(f"/jobs/{ended}").status_code == 204
        assert api.client.get(f"/jobs/{ended}").status_code == 404
        assert api.client.delete(f"/jobs/{waiting}").status_code == 409


class TestPauseAndResume:
    def test_what_waits_is_paused_and_waits_again(self, api: Api) -> None:
        job = api.client.post("/jobs", json=spec(api.dataset())).json()
        for _ in range(2):
            answer = api.client.post(f"/jobs/{job['id']}/pause")
            assert (answer.status_code, answer.json()["status"]) == (202, "paused"), answer.text
            assert answer.headers["ETag"] == f'"{answer.json()["version"]}"' == f'"{job["version"] + 1}"'
        assert [one["id"] for one in api.client.get("/jobs?status=paused").json()["data"]] == [job["id"]]
        for _ in range(2):
            answer = api.client.post(f"/jobs/{job['id']}/resume")
            assert (answer.status_code, answer.json()["status"]) == (202, "queued"), answer.text
            assert answer.json()["waiting_reason"] == job["waiting_reason"]
        told = api.client.get(f"/jobs/{job['id']}/events").json()["data"]
        assert [one["code"] for one in told] == ["queued", "paused", "resume_requested"]
        assert all(one["message"] for one in told)

    def test_what_runs_is_asked_and_may_be_asked_to_go_on(self, api: Api) -> None:
        job = api.job(status="running", attempt=1, progress=0.25, eta_seconds=9.0)
        paused = api.client.post(f"/jobs/{job}/pause").json()
        assert (paused["status"], paused["progress"], paused["eta_seconds"]) == ("pausing", 0.25, 9.0)
        assert api.client.post(f"/jobs/{job}/resume").json()["status"] == "running"

    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_too_late(self, api: Api, verb: str) -> None:
        for status in ("cancelling", "succeeded", "failed", "cancelled"):
            answer = api.client.post(f"/jobs/{api.job(status=status)}/{verb}")
            assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")
            assert answer.json()["hint"]

    def test_a_paused_one_can_be_cancelled(self, api: Api) -> None:
        job = api.job(status="paused")
        assert api.client.delete(f"/jobs/{job}").status_code == 409
        assert api.client.post(f"/jobs/{job}/cancel").json()["status"] == "cancelled"
        assert api.client.delete(f"/jobs/{job}").status_code == 204

    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_whose_it_is(self, api: Api, verb: str) -> None:
        job = api.job()
        assert api.as_("jobs", owner="stranger").post(f"/jobs/{job}/{verb}").status_code == 404
        assert api.as_("read").post(f"/jobs/{job}/{verb}").status_code == 403
        assert api.client.post(f"/jobs/job_nothing/{verb}").status_code == 404

    def test_its_bell_is_rung_once_it_is_seen_to_wait(self, api: Api) -> None:
        """A worker that hears it and looks at once must find the job."""
        seen: list[str] = []

        class Listening(Doorbell):
            def ring(self, job_id: str, device: str) -> None:
                with api.database.reading() as session:
                    seen.append(f"{device} {session.get_one(Job, job_id).status}")

        api.app.state.doorbell = Listening(api.settings)
        job = api.job(status="paused")
        api.client.post(f"/jobs/{job}/resume")
        assert seen == ["cpu queued"]
        api.client.post(f"/jobs/{api.job(status='running')}/resume")
        assert len(seen) == 1


def test_a_locked_database_is_503_and_not_500(settings: Any) -> None:
    """SQLite gives up after five seconds; the caller is told to come back."""
    with running(settings) as api:
        document = spec(api.dataset())
        with api.database.writing() as session:
            session.execute(select(Job.id))
            answer = api.client.post("/jobs", json=document)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        assert api.client.post("/jobs", json=document).status_code == 201
