"""Keys, scopes, and the walk over every route."""

import time
from datetime import timedelta
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from app import security
from app.security import PUBLIC, Rules, needs
from models.tables import utc_now
from tests.app.conftest import Api, bearer, running


class TestKey:
    def test_has_a_public_part_a_secret_and_a_checksum(self) -> None:
        row, secret = security.make_key("me", ["read"])
        head, public_id, body, checksum = secret.split("_")
        assert (head, len(public_id), len(body), len(checksum)) == ("lk", 8, 43, 6)
        assert security.public_part(secret) == public_id == row.public_id
        assert secret not in str(vars(row))

    @pytest.mark.parametrize(
        "change",
        [lambda s: s[:-1], lambda s: s + "a", lambda s: "x" + s[1:], lambda s: s[:20] + "é" + s[21:], lambda s: s[:0]],
    )
    def test_a_mistyped_one_is_known_without_a_query(self, change: Any) -> None:
        assert security.public_part(change(security.make_key("me", ["read"])[1])) is None

    def test_every_changed_character_is_noticed(self) -> None:
        secret = security.make_key("me", ["read"])[1]
        for position in range(3, len(secret)):
            other = "a" if secret[position] != "a" else "b"
            assert security.public_part(secret[:position] + other + secret[position + 1 :]) is None


class TestKeyRoutes:
    def test_the_secret_is_shown_once(self, api: Api) -> None:
        made = api.client.post("/keys", json={"name": "ci", "scopes": ["read", "jobs"], "owner": "team-a"})
        assert made.status_code == 201
        assert made.json()["key"].startswith("lk_")
        assert made.json()["scopes"] == ["jobs", "read"]
        listed = api.client.get("/keys").json()["data"]
        assert listed[0]["id"] == made.json()["id"]
        assert "key" not in listed[0]
        assert "secret" not in str(listed)

    def test_a_new_key_works_at_once_and_a_revoked_one_not_after_a_second(self, api: Api) -> None:
        made = api.client.post("/keys", json={"scopes": ["read"]}).json()
        headers = bearer(made["key"])
        assert api.client.get("/jobs", headers=headers).status_code == 200
        # Revoked behind this process's back, as another replica would.
        with api.database.writing() as session:
            row = session.get(security.Key, made["id"])
            assert row is not None
            row.revoked_at = utc_now()
        time.sleep(1)
        assert api.client.get("/jobs", headers=headers).status_code == 401

    def test_revoking_here_works_at_once(self, api: Api) -> None:
        made = api.client.post("/keys", json={"scopes": ["read"]}).json()
        assert api.client.get("/jobs", headers=bearer(made["key"])).status_code == 200
        for _ in range(2):
            assert api.client.delete(f"/keys/{made['id']}").status_code == 204
        assert api.client.get("/jobs", headers=bearer(made["key"])).status_code == 401

    def test_the_last_admin_key_stays(self, api: Api) -> None:
        only = api.client.get("/keys").json()["data"][0]["id"]
        answer = api.client.delete(f"/keys/{only}")
        assert (answer.status_code, answer.json()["code"]) == (409, "last_admin_key")

    def test_expiry(self, api: Api) -> None:
        past = api.client.post("/keys", json={"scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"})
        assert past.json()["errors"][0]["pointer"] == "/expires_at"
        soon = api.key("read", expires_at=utc_now() + timedelta(seconds=0.3))
        assert api.client.get("/jobs", headers=bearer(soon)).status_code == 200
        time.sleep(0.4)
        assert api.client.get("/jobs", headers=bearer(soon)).status_code == 401

    def test_scopes_are_known_ones(self, api: Api) -> None:
        answer = api.client.post("/keys", json={"scopes": ["root"]})
        assert answer.json()["errors"][0]["pointer"] == "/scopes/0"

    def test_last_use_is_written_down_by_the_sweep(self, api: Api) -> None:
        made = api.client.post("/keys", json={"scopes": ["read"]}).json()
        api.client.get("/jobs", headers=bearer(made["key"]))
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if api.client.get("/keys").json()["data"][0]["last_used_at"]:
                return
            time.sleep(0.05)
        pytest.fail("never written")


def _walk(app: FastAPI) -> list[tuple[str, str]]:
    rules: Rules = Rules.of(app, max_body_bytes=1)
    return [(method, rule.path) for rule in rules.all for method in sorted(rule.methods)]


def _filled(path: str) -> str:
    return "".join(part if index % 2 == 0 else "x" for index, part in enumerate(path.replace("}", "{").split("{")))


OPEN = {("GET", "/"): 307, ("POST", "/ui/sign-in"): 422, ("GET", "/ui/static/{name}"): 404}
"""What is public, and answers a bare request with something else than 200."""


TENSORS = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
"""A body of the Open Inference Protocol."""


class TestEveryRoute:
    def test_no_key(self, api: Api) -> None:
        api.client.headers.pop("Authorization")
        walked = _walk(api.app)
        assert len(walked) > 50
        for method, path in walked:
            answer = api.client.request(method, _filled(path), follow_redirects=False)
            if path in PUBLIC:
                assert answer.status_code == OPEN.get((method, path), 200), (method, path)
            elif method == "GET" and path.startswith("/ui/"):
                assert answer.status_code == 303, path
                assert answer.headers["location"].startswith("/ui/sign-in?next=/ui/"), path
            else:
                assert answer.status_code == 401, (method, path)
                if method != "HEAD":
                    kind = "application/json" if path.startswith("/v2") else "application/problem+json"
                    assert answer.headers["content-type"] == kind
                assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        "header", ["", "Bearer", "Bearer nonsense", "Basic dXNlcjpwYXNz", "Bearer lk_aaaaaaaa_" + "a" * 43 + "_aaaaaa"]
    )
    def test_a_bad_key(self, api: Api, header: str) -> None:
        api.client.headers["Authorization"] = header
        assert api.client.get("/jobs").status_code == 401

    def test_an_address_that_does_not_exist_asks_for_a_key_too(self, api: Api) -> None:
        assert api.client.get("/nothing/here").json()["code"] == "not_found"
        api.client.headers.pop("Authorization")
        assert api.client.get("/nothing/here").status_code == 401
        assert api.client.post("/healthz").status_code == 401

    def test_the_wrong_scope(self, api: Api) -> None:
        rules = Rules.of(api.app, max_body_bytes=1)
        for rule in rules.all:
            if rule.permission is None:
                continue
            others = [permission for permission in security.PERMISSIONS if permission not in {rule.permission, "admin"}]
            client = api.as_(*others)
            for method in rule.methods:
                answer = client.request(method, _filled(rule.path))
                assert answer.status_code == 403, (method, rule.path)

    def test_another_owners_id(self, api: Api, student_folder: Any) -> None:
        """Each route that takes an id answers as if there were nothing there."""
        ids = {
            "job_id": api.job(),
            "dataset_id": api.dataset(),
            "student_id": api.student(student_folder),
            "teacher_id": "tc_00000000",
            "key_id": "key_00000000",
            "name": "production",
            "deployment": "production",
        }
        made = api.client.put("/deployments/production", json={"student": ids["student_id"], "capture": {}})
        assert made.status_code == 201
        captured = api.client.post("/predict/production", json={"inputs": "a"})
        ids["prediction_id"] = captured.headers["X-Limbeck-Prediction"]
        bodies: dict[str, dict[str, Any]] = {
            "/predictions/{prediction_id}/feedback": {"label": "positive"},
            "/deployments/{name}/captures/dataset": {},
            **dict.fromkeys(("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"), TENSORS),
        }
        stranger = api.as_("read", "jobs", "deploy", "predict", owner="stranger")
        walked = 0
        for rule in Rules.of(api.app, max_body_bytes=1).all:
            if "{" not in rule.path or rule.permission == "admin":
                continue
            path = rule.path.replace("{path:path}", "config.json")
            for name, value in ids.items():
                path = path.replace(f"{{{name}}}", value)
            if path.endswith("/economics"):
                path += "?price_per_call=1&calls_per_month=1&host_cost_per_month=1"
            for method in rule.methods:
                body = {"inputs": "a"} if rule.permission == "predict" else {"student": ids["student_id"]}
                body = bodies.get(rule.path, body)
                answer = stranger.request(method, path, json=body if method in {"PUT", "POST"} else None)
                # To point one's own deployment at a stranger's student names the field that is wrong.
                expected = 422 if (method, rule.path) == ("PUT", "/deployments/{name}") else 404
                assert answer.status_code == expected, (method, path, answer.text)
                walked += 1
        assert walked > 15
        for listing in ("/jobs", "/datasets", "/students", "/deployments", "/teachers"):
            assert stranger.get(listing).json()["data"] == []
        assert api.client.get(f"/students/{ids['student_id']}").status_code == 200

    def test_an_admin_sees_all(self, api: Api) -> None:
        job = api.job(owner="stranger")
        assert api.client.get(f"/jobs/{job}").status_code == 200

    def test_a_route_without_a_scope_does_not_start(self) -> None:
        router = APIRouter()
        router.add_api_route("/open", lambda: None)
        app = FastAPI()
        app.include_router(router)
        with pytest.raises(RuntimeError, match="declares no scope"):
            Rules.of(app, max_body_bytes=1)

    def test_a_mount_does_not_start(self) -> None:
        app = FastAPI(openapi_url=None)
        app.mount("/files", FastAPI())
        with pytest.raises(RuntimeError, match="mount"):
            Rules.of(app, max_body_bytes=1)

    def test_the_rule_is_that_of_the_route_that_answers(self, api: Api) -> None:
        rules = Rules.of(api.app, max_body_bytes=1)
        found = rules.find("GET", "/students/st_1/files/a/b")
        assert found is not None
        assert found.path == "/students/{student_id}/files/{path:path}"
        assert rules.find("PATCH", "/jobs") is None
        assert needs("read") != needs("jobs")


class TestBeforeTheBody:
    @pytest.mark.parametrize("path", ["/datasets", "/teachers", "/jobs", "/predict"])
    def test_no_key_is_answered_from_the_headers_alone(self, api: Api, path: str) -> None:
        answers: list[Any] = []

        async def receive() -> Any:
            pytest.fail("the body was read")

        async def send(message: Any) -> None:
            answers.append(message)

        headers = [(b"host", b"testserver"), (b"content-type", b"multipart/form-data; boundary=x")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": headers,
            "query_string": b"",
            "app": api.app,
        }
        assert api.client.portal is not None
        api.client.portal.call(api.app, scope, receive, send)
        assert answers[0]["status"] == 401

    def test_limits(self, api: Api) -> None:
        large = b"x" * (api.settings.max_body_bytes + 1)
        for path in ("/jobs", "/predict", "/keys"):
            answer = api.client.post(path, content=large)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
            chunked = api.client.post(path, content=iter([large[:1_000_000]] * 3))
            assert (chunked.status_code, chunked.json()["code"]) == (413, "too_large")
        assert api.client.post("/jobs", content=large, headers={"Authorization": "Bearer no"}).status_code == 401


def test_hosts(api: Api, settings: Any) -> None:
    strict = settings.model_copy(update={"allowed_hosts": ["limbeck.example"], "data_dir": settings.data_dir / "two"})
    with running(strict) as other:
        assert other.client.get("/healthz").status_code == 400
        assert other.client.get("/healthz", headers={"host": "limbeck.example"}).status_code == 200


def test_websockets_are_refused(api: Api) -> None:
    client: TestClient = api.client
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/jobs"):
        pass
