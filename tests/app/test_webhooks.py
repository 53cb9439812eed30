"""Webhooks and secrets over HTTP: what is asked for, what is refused, and what nobody ever sees again."""

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import text
from standardwebhooks import Webhook as Verifier

from app.routes import bundles
from models import lifecycle, logs
from models.lifecycle import NewStudent
from models.settings import Settings
from models.tables import Job, Student, new_id
from models.webhooks import EVENTS
from tests.app.conftest import Api, eventually, running
from tests.factories import tiny_config
from tests.receiver import Receiver

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
JSON = {"Content-Type": "application/json"}
CANARY = "canary-4c1f-hub-token"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", sweep_interval=0.2, egress_allow="127.0.0.1", egress_http=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running_:
        yield running_


@pytest.fixture
def spec(api: Api) -> dict[str, Any]:
    """A job that can be submitted."""
    folder = api.settings.models_folder / "teacher"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny_config(layers=4).to_dict()))
    return {
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": api.dataset()},
        "teachers": [{"kind": "local", "model": "file:teacher"}],
        "student": {"kind": "from_teacher", "layers": 1},
    }


class TestSecrets:
    def test_a_value_goes_in_and_never_comes_out(self, api: Api) -> None:
        made = api.client.put("/secrets/hub", json={"value": CANARY})
        again = api.client.put("/secrets/hub", json={"value": CANARY + "2"})
        read, listed = api.client.get("/secrets/hub"), api.client.get("/secrets")
        assert [answer.status_code for answer in (made, again, read, listed)] == [201, 200, 200, 200]
        assert read.json().keys() == {"object", "name", "created_at", "updated_at"}
        assert listed.json()["data"] == [read.json()]
        assert CANARY not in made.text + again.text + read.text + listed.text
        assert api.client.delete("/secrets/hub").status_code == 204
        assert api.client.get("/secrets/hub").status_code == 404

    def test_needs_admin_and_belongs_to_its_owner(self, api: Api) -> None:
        api.client.put("/secrets/hub", json={"value": CANARY})
        for permission in ("read", "jobs", "deploy", "predict"):
            assert api.as_(permission).get("/secrets").status_code == 403
        assert api.as_("admin", owner="other").get("/secrets/hub").status_code == 404

    def test_what_is_refused_is_not_repeated(self, api: Api) -> None:
        bodies: list[Any] = [
            {"value": ""},
            {"value": CANARY * 1000},
            {"value": [CANARY]},
            {"value": CANARY, "more": CANARY},
            {"valeu": CANARY},
            CANARY,
        ]
        for body in bodies:
            answer = api.client.put("/secrets/hub", json=body)
            assert answer.status_code == 422
            assert CANARY not in answer.text
        surrogate = api.client.put("/secrets/hub", content=b'{"value": "\\ud800"}', headers=JSON)
        assert surrogate.status_code == 422
        assert api.client.get("/secrets").json()["data"] == []

    def test_a_name_is_no_path(self, api: Api) -> None:
        for name in (".hidden", "webhook%2Fx", "a b", "x" * 65):
            assert api.client.put(f"/secrets/{name}", json={"value": CANARY}).status_code in {404, 422}

    def test_a_log_has_none(self, settings: Settings, capsys: pytest.CaptureFixture[str], receiver: Receiver) -> None:
        """At the most talkative level, over everything that touches a secret; and the database has it encrypted."""
        plain = structlog.get_config()
        root = logging.getLogger()
        before = root.handlers, root.level
        logs.configure()
        root.setLevel(logging.DEBUG)
        try:
            with running(settings) as api:
                api.client.put("/secrets/hub", json={"value": CANARY})
                api.client.put("/secrets/hub", json={"value": [CANARY]})
                api.client.put("/secrets/mine", json={"value": SECRET})
                made = api.client.post("/webhooks", json={"url": receiver.url}).json()
                own = api.client.post("/webhooks", json={"url": receiver.url, "secret": "mine"}).json()
                for webhook in (made, own):
                    api.client.post(f"/webhooks/{webhook['id']}/test")
                eventually(lambda: len(receiver.received) == 2)
                shown = api.client.get("/webhooks").text + api.client.get(f"/webhooks/{own['id']}/deliveries").text
                with api.database.reading() as session:
                    stored = str(session.execute(text("SELECT * FROM secrets")).all())
        finally:
            root.handlers, root.level = before[0], before[1]
            structlog.configure(**plain)
        logged = capsys.readouterr().err
        assert '"path": "/secrets/hub"' in logged
        for secret in (CANARY, SECRET, SECRET[6:], made["signing_secret"], made["signing_secret"][6:]):
            assert secret not in logged
            assert secret not in shown
            assert secret not in stored


class TestWebhooks:
    def test_from_a_jobs_end_to_its_receiver(self, api: Api, receiver: Receiver) -> None:
        made = api.client.post("/webhooks", json={"url": receiver.url, "events": ["job.succeeded"]})
        assert made.status_code == 201
        secret = made.json()["signing_secret"]
        assert secret.startswith("whsec_")
        job, student = api.job(name="tweets"), new_id("st")
        with api.database.writing() as session:
            claimed = lifecycle.claim(session, job, "wk_1", 30)
        assert claimed is not None
        with api.database.writing() as session:
            new = NewStudent(student, "b" * 64, f"students/{student}", {}, {})
            lifecycle.succeed(session, job, claimed.attempt, new)
        eventually(lambda: len(receiver.received) == 1)
        payload = Verifier(secret).verify(receiver.received[0].body, receiver.received[0].headers)
        assert (payload["type"], payload["data"]["id"]) == ("job.succeeded", job)
        webhook = made.json()["id"]
        eventually(lambda: _deliveries(api, webhook)[0]["status"] == "delivered")
        (delivery,) = _deliveries(api, webhook)
        assert delivery["payload"] == payload
        assert (delivery["attempts"], delivery["last_status_code"], delivery["next_attempt_at"]) == (1, 204, None)

    def test_the_signing_secret_is_shown_once(self, api: Api, receiver: Receiver) -> None:
        made = api.client.post("/webhooks", json={"url": receiver.url}).json()
        assert (made["events"], made["secret"]) == (list(EVENTS), None)
        listed = api.client.get("/webhooks")
        assert made["signing_secret"] not in listed.text
        assert listed.json()["data"] == [{name: made[name] for name in made if name != "signing_secret"}]
        assert api.client.get("/secrets").json()["data"] == []

    def test_signed_with_a_secret_of_ones_own(self, api: Api, receiver: Receiver) -> None:
        api.client.put("/secrets/mine", json={"value": SECRET})
        made = api.client.post("/webhooks", json={"url": receiver.url, "secret": "mine"}).json()
        assert (made["secret"], made["signing_secret"]) == ("mine", None)
        assert api.client.delete("/secrets/mine").json()["code"] == "secret_in_use"
        assert api.client.post(f"/webhooks/{made['id']}/test").status_code == 202
        eventually(lambda: len(receiver.received) == 1)
        Verifier(SECRET).verify(receiver.received[0].body, receiver.received[0].headers)

    def test_test_and_replay(self, api: Api, receiver: Receiver) -> None:
        webhook = api.client.post("/webhooks", json={"url": receiver.url}).json()["id"]
        sent = api.client.post(f"/webhooks/{webhook}/test")
        assert (sent.status_code, sent.json()["type"], sent.json()["status"]) == (202, "webhook.test", "pending")
        delivery = sent.json()["id"]
        eventually(lambda: _deliveries(api, webhook)[0]["status"] == "delivered")
        assert api.client.post(f"/webhooks/{webhook}/deliveries/{delivery}/replay").status_code == 202
        eventually(lambda: len(receiver.received) == 2)
        assert {one.headers["webhook-id"] for one in receiver.received} == {delivery}
        assert api.client.post(f"/webhooks/{webhook}/deliveries/dl_absent/replay").status_code == 404

    def test_someone_elses_is_absent(self, api: Api, receiver: Receiver) -> None:
        webhook = api.client.post("/webhooks", json={"url": receiver.url}).json()["id"]
        delivery = api.client.post(f"/webhooks/{webhook}/test").json()["id"]
        other = api.as_("read", "jobs", owner="other")
        assert other.get("/webhooks").json()["data"] == []
        for method, path in (
            ("GET", f"/webhooks/{webhook}/deliveries"),
            ("POST", f"/webhooks/{webhook}/test"),
            ("POST", f"/webhooks/{webhook}/deliveries/{delivery}/replay"),
            ("DELETE", f"/webhooks/{webhook}"),
        ):
            assert other.request(method, path).status_code == 404
        assert api.client.delete(f"/webhooks/{webhook}").status_code == 204
        assert api.client.get(f"/webhooks/{webhook}/deliveries").status_code == 404

    def test_refused(self, api: Api) -> None:
        api.client.put("/secrets/hub", json={"value": CANARY})
        url = "https://127.0.0.1/"
        cases: list[tuple[dict[str, Any], str, str]] = [
            ({"url": "http://169.254.169.254/latest/meta-data"}, "/url", "egress_denied"),
            ({"url": "http://2130706434:80/"}, "/url", "egress_denied"),
            ({"url": "http://[::1]:8000/"}, "/url", "egress_denied"),
            ({"url": "https://me:password@example.org/"}, "/url", "egress_denied"),
            ({"url": "ftp://example.org/"}, "/url", "invalid"),
            ({"url": url, "events": ["job.exploded"]}, "/events/0", "invalid"),
            ({"url": url, "events": []}, "/events", "invalid"),
            ({"url": url, "secret": "absent"}, "/secret", "secret_not_found"),
            ({"url": url, "secret": "hub"}, "/secret", "bad_signing_secret"),
        ]
        for body, pointer, code in cases:
            answer = api.client.post("/webhooks", json=body)
            assert answer.status_code == 422, body
            assert [(one["pointer"], one["code"]) for one in answer.json()["errors"]] == [(pointer, code)]
            assert CANARY not in answer.text
        assert api.client.get("/webhooks").json()["data"] == []


class TestAJobsOwn:
    def test_is_told_of_that_job_alone(self, api: Api, spec: dict[str, Any], receiver: Receiver) -> None:
        api.client.put("/secrets/webhook-signing", json={"value": SECRET})
        wanted = {"url": receiver.url}
        answer = api.client.post("/jobs", json={**spec, "webhook": wanted})
        assert answer.status_code == 201, answer.text
        job = answer.json()["id"]
        assert answer.json()["resolved_spec"]["webhook"] == {**wanted, "secret": "webhook-signing"}
        other = api.client.post("/jobs", json=spec).json()["id"]
        for one in (other, job):
            api.client.post(f"/jobs/{one}/cancel")
        eventually(lambda: len(receiver.received) == 1)
        payload = Verifier(SECRET).verify(receiver.received[0].body, receiver.received[0].headers)
        assert (payload["type"], payload["data"]["id"]) == ("job.cancelled", job)
        assert api.client.get("/webhooks").json()["data"] == []
        (webhook,) = api.client.get(f"/webhooks?job={job}").json()["data"]
        assert (webhook["job_id"], webhook["secret"]) == (job, "webhook-signing")
        eventually(lambda: _deliveries(api, webhook["id"])[0]["status"] == "delivered")

    def test_refused(self, api: Api, spec: dict[str, Any]) -> None:
        document = {**spec, "webhook": {"url": "http://10.0.0.1/"}}
        for path in ("/jobs", "/jobs/validate"):
            answer = api.client.post(path, json=document)
            assert answer.status_code == 422
            assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [
                ("/webhook/url", "egress_denied"),
                ("/webhook/secret", "secret_not_found"),
            ]
            assert "PUT /secrets/webhook-signing" in answer.text
        assert api.client.get("/jobs").json()["data"] == []


def test_a_bundle_tells_nobody_the_address() -> None:
    webhook = {"url": f"https://ci.example/{CANARY}", "secret": "ci"}
    job = Job(id="job_1", name="", spec={"name": "", "webhook": webhook}, resolved_spec={"seed": 0, "webhook": webhook})
    document = bundles._document(job, Student(hash="", manifest={}), [])
    assert CANARY not in json.dumps(document)
    assert (document["spec"], document["resolved_spec"]) == ({"name": ""}, {"seed": 0, "webhook": None})


def test_nothing_is_called_unless_it_is_allowed(tmp_path: Path, receiver: Receiver) -> None:
    """The settings as they come: no plain HTTP, and nothing on this machine."""
    with running(Settings(data_dir=tmp_path / "data", sweep_interval=0.2)) as api:
        for url in (receiver.url, receiver.url.replace("http:", "https:")):
            answer = api.client.post("/webhooks", json={"url": url})
            assert (answer.status_code, answer.json()["code"]) == (422, "egress_denied")
    assert receiver.received == []


def _deliveries(api: Api, webhook_id: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = api.client.get(f"/webhooks/{webhook_id}/deliveries").json()["data"]
    return found
