"""Whatever the service can do has a verb here, in both clients: the OpenAPI document of the real one, operation by
operation.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anyio.from_thread import BlockingPortal

from limbeck import ApiError, Client
from tests.client.awaited import awaited
from tests.client.scripts import Script
from tests.client.stand_ins import Service

ABSENT = {("POST", "/predict"): "it is predict('default', …)"}
"""The operations that have no verb of their own, and why."""
PROTOCOLS = ("/v1/", "/v2")
"""What is there for the clients of the OpenAI dialect and of the Open Inference Protocol."""

VERBS: dict[tuple[str, str], Callable[[Client, Path], object]] = {
    ("POST", "/datasets"): lambda client, folder: client.datasets.upload(folder / "rows.csv"),
    ("GET", "/datasets"): lambda client, _: client.datasets.list(),
    ("GET", "/datasets/{dataset_id}"): lambda client, _: client.datasets.get("x"),
    ("DELETE", "/datasets/{dataset_id}"): lambda client, _: client.datasets.delete("x"),
    ("GET", "/datasets/{dataset_id}/rows"): lambda client, _: client.datasets.rows("x"),
    ("POST", "/teachers"): lambda client, folder: client.teachers.upload(folder),
    ("GET", "/teachers"): lambda client, _: client.teachers.list(),
    ("GET", "/teachers/{teacher_id}"): lambda client, _: client.teachers.get("x"),
    ("DELETE", "/teachers/{teacher_id}"): lambda client, _: client.teachers.delete("x"),
    ("POST", "/ui/links"): lambda client, _: client.sign_in_link(),
    ("POST", "/jobs"): lambda client, _: client.jobs.submit({}),
    ("GET", "/jobs"): lambda client, _: client.jobs.list(),
    ("POST", "/jobs/{job_id}/rerun"): lambda client, _: client.jobs.rerun("x"),
    ("POST", "/jobs/validate"): lambda client, _: client.jobs.validate({}),
    ("POST", "/jobs/{job_id}/cancel"): lambda client, _: client.jobs.cancel("x"),
    ("POST", "/jobs/{job_id}/pause"): lambda client, _: client.jobs.pause("x"),
    ("POST", "/jobs/{job_id}/resume"): lambda client, _: client.jobs.resume("x"),
    ("DELETE", "/jobs/{job_id}"): lambda client, _: client.jobs.delete("x"),
    ("GET", "/jobs/{job_id}"): lambda client, _: client.jobs.get("x"),
    ("GET", "/jobs/{job_id}/events"): lambda client, _: list(client.jobs.events("x")),
    ("GET", "/jobs/{job_id}/metrics"): lambda client, _: client.jobs.metrics("x"),
    ("GET", "/metrics/jobs"): lambda client, _: client.jobs.compare(["x", "y"], "loss"),
    ("GET", "/jobs/{job_id}/bundle"): lambda client, folder: client.jobs.bundle("x", folder / "bundle.zip"),
    ("GET", "/students"): lambda client, _: client.students.list(),
    ("GET", "/students/{student_id}"): lambda client, _: client.students.get("x"),
    ("DELETE", "/students/{student_id}"): lambda client, _: client.students.delete("x"),
    ("GET", "/students/{student_id}/report"): lambda client, _: client.students.report("x"),
    ("GET", "/students/{student_id}/disagreements"): lambda client, _: client.students.disagreements("x"),
    ("GET", "/students/{student_id}/economics"): lambda client, _: client.students.economics(
        "x", calls_per_month=1, host_cost_per_month=1, price_per_call=1
    ),
    ("GET", "/students/{student_id}/files"): lambda client, folder: client.students.download("x", folder),
    ("GET", "/students/{student_id}/files/{path}"): lambda client, _: client.students.manifest("x"),
    ("POST", "/students/{student_id}/predict"): lambda client, _: client.students.predict("x", ["a text"]),
    ("POST", "/students/{student_id}/verify"): lambda client, _: client.students.verify("x"),
    ("PUT", "/deployments/{name}"): lambda client, _: client.deployments.put("x", "st_x"),
    ("GET", "/deployments/{name}"): lambda client, _: client.deployments.get("x"),
    ("DELETE", "/deployments/{name}"): lambda client, _: client.deployments.delete("x"),
    ("GET", "/deployments"): lambda client, _: client.deployments.list(),
    ("GET", "/deployments/{name}/history"): lambda client, _: client.deployments.history("x"),
    ("POST", "/deployments/{name}/rollback"): lambda client, _: client.deployments.rollback("x"),
    ("GET", "/deployments/{name}/traffic"): lambda client, _: client.deployments.traffic("x"),
    ("POST", "/predict/{deployment}"): lambda client, _: client.predict("x", "a text"),
    ("GET", "/deployments/{name}/captures"): lambda client, _: client.deployments.captures("x"),
    ("DELETE", "/deployments/{name}/captures"): lambda client, _: client.deployments.delete_captures("x"),
    ("POST", "/deployments/{name}/captures/dataset"): lambda client, _: client.deployments.dataset_of_captures("x"),
    ("POST", "/predictions/{prediction_id}/feedback"): lambda client, _: client.predictions.feedback("x", "good"),
    ("GET", "/secrets"): lambda client, _: client.secrets.list(),
    ("GET", "/secrets/{name}"): lambda client, _: client.secrets.get("x"),
    ("PUT", "/secrets/{name}"): lambda client, _: client.secrets.put("x", "value"),
    ("DELETE", "/secrets/{name}"): lambda client, _: client.secrets.delete("x"),
    ("GET", "/webhooks"): lambda client, _: client.webhooks.list(),
    ("POST", "/webhooks"): lambda client, _: client.webhooks.create("https://example.org"),
    ("DELETE", "/webhooks/{webhook_id}"): lambda client, _: client.webhooks.delete("x"),
    ("GET", "/webhooks/{webhook_id}/deliveries"): lambda client, _: client.webhooks.deliveries("x"),
    ("POST", "/webhooks/{webhook_id}/deliveries/{delivery_id}/replay"): lambda client, _: client.webhooks.replay(
        "x", "y"
    ),
    ("POST", "/webhooks/{webhook_id}/test"): lambda client, _: client.webhooks.test("x"),
    ("POST", "/keys"): lambda client, _: client.keys.create(["read"]),
    ("GET", "/keys"): lambda client, _: client.keys.list(),
    ("DELETE", "/keys/{key_id}"): lambda client, _: client.keys.delete("x"),
    ("GET", "/workers"): lambda client, _: client.workers(),
    ("GET", "/healthz"): lambda client, _: client.alive(),
    ("GET", "/readyz"): lambda client, _: client.ready(),
    ("GET", "/metrics"): lambda client, _: client.metrics(),
}


def test_every_operation_has_a_verb(service: Service, key: str) -> None:
    answer = httpx2.get(f"{service.url}/openapi.json", headers={"Authorization": f"Bearer {key}"})
    document: dict[str, Any] = answer.json()
    there = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    there = {(method, path) for method, path in there if not path.startswith(PROTOCOLS)}
    assert there == {*VERBS, *ABSENT}


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
def test_each_verb_asks_for_its_operation(kind: str, script: Script, portal: BlockingPortal, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    script.answers = [(400, {}, {"code": "no", "detail": "no"})]
    with Client(script.url, "k") as blocking, awaited(portal, script.url, "k") as other:
        for (method, path), call in VERBS.items():
            script.seen.clear()
            with pytest.raises(ApiError):
                call(blocking if kind == "blocking" else other, tmp_path)
            asked_method, asked_path, _, _ = script.seen[0]
            template = re.sub(r"\{\w+\}", "[^/?]+", path)
            assert asked_method == method
            assert re.fullmatch(template, asked_path.partition("?")[0]), f"{path} was asked as {asked_path}"
