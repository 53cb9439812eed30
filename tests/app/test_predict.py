"""Deployments and /predict, over HTTP."""

import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from models import deployments
from models.answers import Kind
from models.runtime import Runtime
from models.settings import Settings
from models.specs import DeploymentSpec
from tests.app.conftest import Api, eventually, running
from tests.factories import LABELS, tiny_rows

TEXTS = tiny_rows(40)[0]


class TestPredict:
    @pytest.mark.parametrize(
        "inputs",
        [
            "a good day",
            ["a good day"],
            {"text": "a good day"},
            [{"text": "a good day"}],
            {"text": "a good day", "text_pair": None},
        ],
    )
    def test_always_a_list_of_lists(self, api: Api, student_folder: Path, inputs: Any) -> None:
        student = api.deployed(student_folder)
        answer = api.client.post("/predict", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-Limbeck-Student"] == student
        [labels] = answer.json()
        assert {label["label"] for label in labels} == set(LABELS)
        assert [label["score"] for label in labels] == sorted((label["score"] for label in labels), reverse=True)
        assert sum(label["score"] for label in labels) == pytest.approx(1)

    def test_is_what_the_runtime_says_in_the_order_of_the_inputs(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder, "sentiment")
        answer = api.client.post("/predict/sentiment", json={"inputs": TEXTS})
        assert answer.json() == Runtime.open(student_folder).predict(TEXTS)

    def test_parameters(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        body = {"inputs": "a", "parameters": {"top_k": 2, "function_to_apply": "sigmoid"}}
        assert len(api.client.post("/predict", json=body).json()[0]) == 2
        assert api.client.post("/predict", json={"inputs": "a", "parameters": None}).status_code == 200

    def test_where_the_time_went(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        header = api.client.post("/predict", json={"inputs": "a"}).headers["Server-Timing"]
        names = [part.split(";")[0].strip() for part in header.split(",")]
        assert names == ["tokenize", "queue", "infer"]

    @pytest.mark.parametrize(
        ("body", "pointer", "code"),
        [
            ({}, "/inputs", "missing"),
            ({"inputs": []}, "/inputs", "empty_inputs"),
            ({"inputs": ["a"] * 6}, "/inputs", "too_many_inputs"),
            ({"inputs": ["a", "b" * 101]}, "/inputs/1", "text_too_long"),
            ({"inputs": 3}, "/inputs", "invalid"),
            ({"inputs": None}, "/inputs", "invalid"),
            ({"inputs": ["a", {"text": "b"}]}, "/inputs", "invalid"),
            ({"inputs": [["a"]]}, "/inputs/0", "invalid"),
            ({"inputs": {"txt": "a"}}, "/inputs/text", "missing"),
            ({"inputs": {"question": "a"}}, "/inputs/context", "missing"),
            ({"inputs": {"question": "a", "context": "b", "text": "c"}}, "/inputs/text", "unknown_field"),
            ({"inputs": {"text": "a", "text_pair": 3}}, "/inputs/text_pair", "invalid"),
            ({"inputs": {"question": "a", "context": "b" * 101}}, "/inputs/context", "text_too_long"),
            ({"inputs": [{"text": "a"}, {"text": "a", "text_pair": "b"}]}, "/inputs", "invalid"),
            ({"inputs": [{"text": "a"}, {"question": "a", "context": "b"}]}, "/inputs", "invalid"),
            ({"inputs": "a", "parameters": {"top_p": 1}}, "/parameters/top_p", "unknown_parameter"),
            ({"inputs": "a", "parameters": {"top_k": 0}}, "/parameters/top_k", "invalid_parameter"),
            ({"inputs": "a", "parameters": [1]}, "/parameters", "invalid"),
            ({"inputs": "a", "wait": True}, "/wait", "unknown_field"),
            ([], "", "invalid"),
        ],
    )
    def test_what_cannot_be_answered(self, settings: Settings, body: Any, pointer: str, code: str) -> None:
        with running(settings.model_copy(update={"max_predict_inputs": 5, "max_text_chars": 100})) as api:
            answer = api.client.post("/predict", json=body)
            assert answer.status_code == 422, answer.text
            error = answer.json()["errors"][0]
            assert (error["pointer"], error["code"]) == (pointer, code)

    @pytest.mark.parametrize("body", [b"", b"{", b'{"inputs": "\\ud800"}', b"\xff", b"[" * 100_000])
    def test_what_is_no_text(self, api: Api, body: bytes) -> None:
        answer = api.client.post("/predict", content=body)
        assert answer.status_code == 422, answer.text

    @pytest.mark.parametrize("text", ["", " ", "\x00", "é" * 300, "🙂", "[CLS] [SEP]", "a" * 5000])
    def test_strange_texts_are_texts(self, api: Api, student_folder: Path, text: str) -> None:
        api.deployed(student_folder)
        assert api.client.post("/predict", json={"inputs": text}).status_code == 200

    def test_no_such_deployment(self, api: Api) -> None:
        for path in ("/predict", "/predict/nothing"):
            assert api.client.post(path, json={"inputs": "a"}).json()["code"] == "not_found"

    def test_many_at_once(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        expected = Runtime.open(student_folder).predict(TEXTS)

        def ask(number: int) -> bool:
            at = number % len(TEXTS)
            return bool(api.client.post("/predict", json={"inputs": TEXTS[at]}).json() == [expected[at]])

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(ask, range(200)))

    def test_counted(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        for _ in range(3):
            api.client.post("/predict", json={"inputs": "a"})
        api.client.post("/predict/made-up", json={"inputs": "a"})
        text = api.client.get("/metrics").text
        assert 'limbeck_predict_requests_total{deployment="default",outcome="ok"} 3.0' in text
        assert 'limbeck_predict_seconds_count{deployment="default"} 3.0' in text
        assert 'limbeck_jobs{status="queued"} 0.0' in text
        assert "made-up" not in text


class TestEveryTask:
    """Each kind of task answers in its own shape, for one input and for a list."""

    def test_a_number_of_a_pair(self, api: Api, folders: dict[Kind, Path]) -> None:
        api.deployed(folders["text-regression"])
        pair = {"text": "a good day", "text_pair": "a great day"}
        [[answer]] = api.client.post("/predict", json={"inputs": pair}).json()
        assert answer["label"] == "target"
        many = api.client.post("/predict", json={"inputs": [pair, {"text": "bad", "text_pair": "good"}]}).json()
        assert many[0] == [answer]
        assert many[1] != [answer]

    def test_entities(self, api: Api, folders: dict[Kind, Path]) -> None:
        api.deployed(folders["token-classification"])
        text = "Really good service, on a monday"
        one = api.client.post("/predict", json={"inputs": text}).json()
        assert one
        for entity in one:
            assert list(entity) == ["entity_group", "score", "word", "start", "end"]
            assert entity["word"] == text[entity["start"] : entity["end"]]
        assert api.client.post("/predict", json={"inputs": [text, text]}).json() == [one, one]
        body = {"inputs": text, "parameters": {"aggregation_strategy": "none"}}
        tokens = api.client.post("/predict", json=body).json()
        assert list(tokens[0]) == ["entity", "score", "index", "word", "start", "end"]

    def test_spans(self, api: Api, folders: dict[Kind, Path]) -> None:
        api.deployed(folders["question-answering"])
        question = {"question": "was it good?", "context": "The service was great. " * 8}
        one = api.client.post("/predict", json={"inputs": question}).json()
        assert list(one) == ["answer", "score", "start", "end"]
        assert one["answer"] == question["context"][one["start"] : one["end"]] != ""
        assert api.client.post("/predict", json={"inputs": [question]}).json() == [one]
        several = api.client.post("/predict", json={"inputs": question, "parameters": {"top_k": 3}}).json()
        assert several[0] == one
        assert len(several) == 3

    @pytest.mark.parametrize(
        ("kind", "body", "pointer", "code"),
        [
            ("text-classification", {"inputs": {"question": "a", "context": "b"}}, "/inputs", "wrong_input"),
            ("text-regression", {"inputs": ["a", "b"]}, "/inputs/0", "wrong_input"),
            ("token-classification", {"inputs": [{"text": "a", "text_pair": "b"}]}, "/inputs/0", "wrong_input"),
            ("question-answering", {"inputs": "a"}, "/inputs", "wrong_input"),
            ("token-classification", {"inputs": "a", "parameters": {"top_k": 1}}, "/parameters/top_k", None),
            (
                "text-classification",
                {"inputs": "a", "parameters": {"aggregation_strategy": "first"}},
                "/parameters/aggregation_strategy",
                None,
            ),
        ],
    )
    def test_what_another_task_would_take(
        self, api: Api, folders: dict[Kind, Path], kind: Kind, body: Any, pointer: str, code: str | None
    ) -> None:
        api.deployed(folders[kind])
        answer = api.client.post("/predict", json=body)
        assert answer.status_code == 422, answer.text
        [error] = answer.json()["errors"]
        assert (error["pointer"], error["code"]) == (pointer, code or "unknown_parameter")
        outcome = code or "unknown_parameter"
        assert f'deployment="default",outcome="{outcome}"' in api.client.get("/metrics").text

    def test_the_contract_says_so(self, api: Api) -> None:
        document = api.app.openapi()
        names = document["components"]["schemas"]
        operation = document["paths"]["/predict"]["post"]
        references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(operation))
        assert {"Label", "Entity", "Token", "Span"} <= set(references) <= set(names)
        inputs = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["inputs"]["anyOf"]
        assert [sorted(one["properties"]) for one in inputs if one["type"] == "object"] == [
            ["text", "text_pair"],
            ["context", "question"],
        ]


class TestPut:
    def test_make_move_and_repeat(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        one, two = api.student(student_folder), api.student(other_folder)
        made = api.client.put("/deployments/live", json={"student": one})
        assert (made.status_code, made.headers["ETag"], made.json()["student"]) == (201, '"1"', one)
        again = api.client.put("/deployments/live", json={"student": one})
        assert (again.status_code, again.headers["ETag"]) == (200, '"1"')
        moved = api.client.put("/deployments/live", json={"student": two}, headers={"If-Match": '"1"'})
        assert (moved.status_code, moved.headers["ETag"]) == (200, '"2"')
        assert api.client.post("/predict/live", json={"inputs": "a"}).headers["X-Limbeck-Student"] == two
        history = api.client.get("/deployments/live/history").json()["data"]
        assert [
            (change["version"], change["student"], change["previous_student"], change["verb"]) for change in history
        ] == [
            (2, two, one, "put"),
            (1, one, None, "put"),
        ]
        assert history[0]["by"].startswith("key_")
        assert api.client.get(f"/students/{two}").json()["deployments"] == ["live"]

    def test_the_version_must_be_current(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        one, two = api.student(student_folder), api.student(other_folder)
        early = api.client.put("/deployments/live", json={"student": one}, headers={"If-Match": '"1"'})
        assert early.status_code == 412
        api.client.put("/deployments/live", json={"student": one})
        for headers in ({"If-Match": '"7"'}, {"If-None-Match": "*"}):
            answer = api.client.put("/deployments/live", json={"student": two}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (412, "version_mismatch")
        assert api.client.put("/deployments/live", json={"student": two}, headers={"If-Match": "x"}).status_code == 422
        assert api.client.put("/deployments/live", json={"student": two}, headers={"If-Match": "*"}).status_code == 200

    def test_reserved_fields(self, api: Api, student_folder: Path) -> None:
        body = {"student": api.student(student_folder), "cache": {"rows": 10}}
        answer = api.client.put("/deployments/live", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "not_available_yet")
        assert answer.json()["errors"][0]["pointer"] == "/cache"
        assert api.client.put("/deployments/live", json=body | {"cache": None}).status_code == 201

    @pytest.mark.parametrize("name", ["Live", "a_b", "-a", "a" * 64, "a.b", "..%2f"])
    def test_names(self, api: Api, name: str) -> None:
        assert api.client.put(f"/deployments/{name}", json={"student": "st_1"}).status_code in {404, 422}

    def test_an_unhealthy_student_does_not_get_the_pointer(
        self, api: Api, student_folder: Path, damaged_folder: Path
    ) -> None:
        good = api.deployed(student_folder, "live")
        answer = api.client.put("/deployments/live", json={"student": api.student(damaged_folder)})
        assert (answer.status_code, answer.json()["code"]) == (409, "student_unhealthy")
        assert api.client.get("/deployments/live").json()["student"] == good
        assert api.client.post("/predict/live", json={"inputs": "a"}).headers["X-Limbeck-Student"] == good

    def test_a_file_that_changed_on_the_disk(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        path = next(api.settings.data_dir.glob(f"artifacts/students/{student}/student.onnx"))
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        answer = api.client.put("/deployments/live", json={"student": student})
        assert (answer.status_code, answer.json()["code"]) == (409, "student_unhealthy")


class TestRollback:
    def test_two_in_a_row_go_two_back(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        students = [api.student(folder) for folder in (student_folder, other_folder, student_folder)]
        for student in students:
            api.client.put("/deployments/live", json={"student": student})
        for expected in reversed(students[:2]):
            answer = api.client.post("/deployments/live/rollback")
            assert (answer.status_code, answer.json()["student"]) == (200, expected)
            assert api.client.post("/predict/live", json={"inputs": "a"}).headers["X-Limbeck-Student"] == expected
        nothing = api.client.post("/deployments/live/rollback")
        assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_before")
        # Forward again, and back.
        api.client.put("/deployments/live", json={"student": students[2]})
        assert api.client.post("/deployments/live/rollback").json()["student"] == students[0]
        verbs = [change["verb"] for change in api.client.get("/deployments/live/history").json()["data"]]
        assert verbs == ["rollback", "put", "rollback", "rollback", "put", "put", "put"]

    def test_a_deleted_student_is_passed_over(self, api: Api, student_folder: Path) -> None:
        students = [api.student(student_folder) for _ in range(3)]
        for student in students:
            api.client.put("/deployments/live", json={"student": student})
        assert api.client.delete(f"/students/{students[1]}").status_code == 204
        assert api.client.post("/deployments/live/rollback").json()["student"] == students[0]

    def test_delete(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder, "live")
        assert api.client.delete("/deployments/live", headers={"If-Match": '"9"'}).status_code == 412
        assert api.client.delete("/deployments/live").status_code == 204
        assert api.client.post("/predict/live", json={"inputs": "a"}).status_code == 404
        assert api.client.delete("/deployments/live").status_code == 404


class TestAnotherReplica:
    """The pointer moves in the database, behind this process's back."""

    def test_follows_within_a_second_and_fails_nobody(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        one = api.deployed(student_folder, "live")
        two = api.student(other_folder)
        answers: list[tuple[int, str]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = api.client.post("/predict/live", json={"inputs": "a"})
                answers.append((answer.status_code, answer.headers.get("X-Limbeck-Student", "")))

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        for student in (two, one, two):
            time.sleep(0.3)
            with api.database.writing() as session:
                deployments.put(
                    session, owner="default", name="live", wanted=DeploymentSpec(student=student), by="job_1"
                )
            began = time.monotonic()
            eventually(lambda wanted=student: answers[-1][1] == wanted)  # type: ignore[misc]
            assert time.monotonic() - began < 1
        stop.set()
        for asker in askers:
            asker.join()
        assert {status for status, _ in answers} == {200}
        assert {student for _, student in answers} == {one, two}

    def test_a_damaged_student_leaves_the_old_one_serving(
        self, api: Api, student_folder: Path, damaged_folder: Path
    ) -> None:
        good = api.deployed(student_folder, "live")
        bad = api.student(damaged_folder)
        with api.database.writing() as session:
            deployments.promote(session, owner="default", name="live", student_id=bad, by="job_1", gate=None, reason="")
        time.sleep(0.8)
        answer = api.client.post("/predict/live", json={"inputs": "a"})
        assert (answer.status_code, answer.headers["X-Limbeck-Student"]) == (200, good)

    def test_a_new_deployment_answers_at_once(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        with api.database.writing() as session:
            deployments.put(session, owner="default", name="new", wanted=DeploymentSpec(student=student), by="job_1")
        assert api.client.post("/predict/new", json={"inputs": "a"}).status_code == 200

    def test_a_deleted_one_is_gone_within_a_second(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder, "live")
        with api.database.writing() as session:
            session.delete(deployments.find(session, owner="default", name="live"))
        eventually(lambda: api.client.post("/predict/live", json={"inputs": "a"}).status_code == 404, 1)


def test_a_restart_with_a_damaged_student_says_so(settings: Settings, student_folder: Path) -> None:
    with running(settings) as api:
        student = api.deployed(student_folder, "live")
    shutil.rmtree(settings.data_dir / "artifacts" / "students" / student)
    with running(settings) as api:
        answer = api.client.post("/predict/live", json={"inputs": "a"})
        assert (answer.status_code, answer.json()["code"]) == (503, "student_unhealthy")
        assert answer.headers["Retry-After"]


def test_owners_have_their_own_names(api: Api, student_folder: Path, other_folder: Path) -> None:
    mine = api.deployed(student_folder, "live")
    other = api.as_("deploy", "predict", "read", owner="other")
    theirs = api.student(other_folder, owner="other")
    assert other.put("/deployments/live", json={"student": theirs}).status_code == 201
    assert other.post("/predict/live", json={"inputs": "a"}).headers["X-Limbeck-Student"] == theirs
    assert api.client.post("/predict/live", json={"inputs": "a"}).headers["X-Limbeck-Student"] == mine
    assert len(json.loads(other.get("/deployments").text)["data"]) == 1
