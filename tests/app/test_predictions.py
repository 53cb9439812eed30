"""Captures over HTTP: looking at them, telling the truth about them, making a dataset of them."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select, update

from app.serving.shelf import Pointer
from models.answers import Answer, Label, Span
from models.artifacts import Manifest
from models.inputs import Input, Pair, Question, Words
from models.specs import Capture, Traffic
from models.tables import Deployment, Prediction, Student, new_id, utc_now
from tests.app.conftest import Api, eventually
from tests.factories import LABELS
from tests.students import TAGS

TASKS: Mapping[str, dict[str, Any]] = {
    "one": {"kind": "text-classification", "text": "tweet", "label": "answer"},
    "pair": {"kind": "text-classification", "text": "premise", "text_pair": "hypothesis", "label": "gold"},
    "many": {"kind": "text-classification", "text": "text", "label": "labels", "multi_label": True},
    "number": {"kind": "text-regression", "text": "text", "target": "score"},
    "words": {"kind": "token-classification", "tokens": "tokens", "tags": "tags"},
    "span": {"kind": "question-answering", "question": "question", "context": "context", "answers": "answers"},
}
INPUTS: Mapping[str, list[Input]] = {
    "one": ["a good day", "a bad day"],
    "pair": [Pair("a good day", "it is good"), Pair("a bad day", "it is good")],
    "many": ["a good day", "a bad day"],
    "number": ["a good day", "a bad day"],
    "words": ["my good day", "a bad day"],
    "span": [Question("is it good", "the day was good"), Question("is it bad", "the day was good")],
}
Z = {"label": "positive"}


ANSWERS: Mapping[str, Answer] = {
    "one": [Label(label="positive", score=0.9), Label(label="negative", score=0.1)],
    "pair": [Label(label="positive", score=0.9)],
    "many": [Label(label="positive", score=0.9)],
    "number": [Label(label="score", score=0.5)],
    "words": [],
    "span": Span(answer="day", score=0.5, start=4, end=7),
}
NAMES: Mapping[str, Sequence[str]] = {
    "one": LABELS,
    "pair": LABELS,
    "many": LABELS,
    "number": ["score"],
    "words": TAGS,
    "span": [],
}


class Captured:
    """A deployment whose capture is given calls by hand. Its student's row has no artifact: nobody asks it."""

    def __init__(self, api: Api, task: str = "one", name: str = "default", *, spec: bool = True) -> None:
        self.api = api
        self.task = task
        self.id = new_id("dep")
        self.student = new_id("st")
        manifest = Manifest(
            kind="student",
            student_hash="",
            task=TASKS[task]["kind"],
            labels=list(NAMES[task]),
            spec={"task": TASKS[task]} if spec else {},
            created_at=utc_now(),
            files={},
        )
        student = Student(
            id=self.student,
            owner="default",
            job_id=new_id("job"),
            hash="",
            artifact="students/none",
            manifest=manifest.model_dump(mode="json"),
            report={},
        )
        with api.database.writing() as session:
            session.add(student)
            session.flush()
            session.add(Deployment(id=self.id, owner="default", name=name, student_id=self.student))

    def ask(self, *inputs: Input, answers: Sequence[Answer] | None = None, **capture: Any) -> str:
        """The id of a call, which the recorder has just been given."""
        found = [ANSWERS[self.task]] * len(inputs) if answers is None else answers
        traffic = Traffic(capture=Capture(**capture))
        pointer = Pointer(self.id, "default", "default", self.student, 1, traffic)
        id_ = self.api.app.state.recorder.keep(pointer, "stable", self.student, inputs, found)
        assert isinstance(id_, str)
        return id_

    def written(self, *inputs: Input, **options: Any) -> list[str]:
        """The ids of rows, oldest first, once they are there."""
        ids = [self.ask(item, **options) for item in inputs]
        eventually(lambda: self.count(ids) == len(ids))
        return ids

    def count(self, ids: Sequence[str]) -> int:
        with self.api.database.reading() as session:
            return len(session.scalars(select(Prediction.id).where(Prediction.id.in_(ids))).all())

    def expire(self, id_: str) -> None:
        with self.api.database.writing() as session:
            session.execute(update(Prediction).where(Prediction.id == id_).values(expires_at=utc_now() - timedelta(1)))


def rows_of(api: Api, dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(api.store.fetch_file(f"datasets/{dataset['id']}.parquet")).to_pylist()
    return rows


class TestLooking:
    def test_pages_newest_first(self, api: Api) -> None:
        deployed = Captured(api)
        ids = deployed.written("a", "b", "c")
        first = api.client.get("/deployments/default/captures", params={"limit": 2}).json()
        assert [row["id"] for row in first["data"]] == [ids[2], ids[1]]
        assert first["has_more"]
        [row] = api.client.get("/deployments/default/captures", params={"after": ids[1]}).json()["data"]
        assert row["object"] == "prediction"
        assert (row["id"], row["input"], row["student"], row["arm"]) == (ids[0], "a", deployed.student, "stable")
        assert row["answer"] == ANSWERS["one"]
        assert row["label"] is row["labelled_at"] is None

    def test_with_a_label_or_without(self, api: Api) -> None:
        told, silent = Captured(api).written("a", "b")
        assert api.client.post(f"/predictions/{told}/feedback", json=Z).status_code == 200
        for labelled, expected in (("true", told), ("false", silent)):
            answer = api.client.get("/deployments/default/captures", params={"labelled": labelled}).json()
            assert [row["id"] for row in answer["data"]] == [expected]

    def test_what_is_personal_was_never_stored(self, api: Api) -> None:
        Captured(api).written("mail ann@example.com", redact=["email"])
        [row] = api.client.get("/deployments/default/captures").json()["data"]
        assert row["input"] == "mail [redacted]"
        stored = b"".join(path.read_bytes() for path in api.settings.data_dir.glob("limbeck.db*"))
        assert b"mail [redacted]" in stored
        assert b"ann@example.com" not in stored

    def test_forgetting(self, api: Api) -> None:
        ids = Captured(api).written("a", "b")
        other = Captured(api, "one", "other").written("c")
        assert api.client.delete("/deployments/default/captures").status_code == 204
        assert api.client.get("/deployments/default/captures").json()["data"] == []
        assert api.client.post(f"/predictions/{other[0]}/feedback", json=Z).status_code == 200
        assert api.client.delete("/deployments/default/captures").status_code == 204
        assert ids

    def test_the_sweep_deletes_what_has_expired(self, api: Api) -> None:
        deployed = Captured(api)
        [old, new] = deployed.written("a", "b")
        deployed.expire(old)
        eventually(lambda: deployed.count([old]) == 0)
        assert deployed.count([new]) == 1


class TestFeedback:
    def test_a_label(self, api: Api) -> None:
        [id_] = Captured(api).written("a")
        answer = api.client.post(f"/predictions/{id_}/feedback", json=Z)
        assert answer.status_code == 200, answer.text
        assert answer.json()["label"] == "positive"
        [row] = api.client.get("/deployments/default/captures").json()["data"]
        assert row == answer.json()

    def test_what_is_no_answer_of_the_task(self, api: Api) -> None:
        [id_] = Captured(api).written("a")
        answer = api.client.post(f"/predictions/{id_}/feedback", json={"label": "good"})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_label")
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/label"]
        assert api.client.get("/deployments/default/captures").json()["data"][0]["label"] is None

    def test_no_number(self, api: Api) -> None:
        [id_] = Captured(api, "number").written("a")
        headers = {"Content-Type": "application/json"}
        for number in ("NaN", "Infinity", "1e999"):
            content = f'{{"label": {number}}}'
            answer = api.client.post(f"/predictions/{id_}/feedback", content=content, headers=headers)
            assert answer.status_code == 422, answer.text

    def test_the_same_again_changes_nothing_and_another_replaces(self, api: Api) -> None:
        [id_] = Captured(api).written("a")
        bodies = [Z, Z, {"label": "neutral"}]
        first, second, third = (api.client.post(f"/predictions/{id_}/feedback", json=body).json() for body in bodies)
        assert first == second
        assert third["label"] == "neutral"
        assert third["labelled_at"] > first["labelled_at"]

    def test_one_of_several_inputs(self, api: Api) -> None:
        id_ = Captured(api).ask("a", "b")
        answer = api.client.post(f"/predictions/{id_}.1/feedback", json=Z)
        assert answer.json()["input"] == "b"
        absent = api.client.post(f"/predictions/{id_}/feedback", json=Z)
        assert absent.status_code == 404
        assert ".0" in absent.json()["hint"]

    def test_before_the_row_is_written(self, api: Api) -> None:
        """Somebody holds the write lock of the database for a second, and feedback comes meanwhile."""
        deployed = Captured(api)
        locked = threading.Event()

        def hold() -> None:
            with api.database.writing():
                locked.set()
                time.sleep(1)

        holding = threading.Thread(target=hold)
        holding.start()
        assert locked.wait(10)
        id_ = deployed.ask("a")
        assert deployed.count([id_]) == 0
        answer = api.client.post(f"/predictions/{id_}/feedback", json=Z)
        holding.join()
        assert answer.status_code == 200, answer.text
        assert answer.json()["label"] == "positive"

    def test_of_what_is_old_and_absent_nobody_waits(self, api: Api) -> None:
        began = time.monotonic()
        for id_ in ("pr_01hzzzzzzz" + "0" * 16, "pr_1", "a" * 64):
            assert api.client.post(f"/predictions/{id_}/feedback", json=Z).status_code == 404
        assert time.monotonic() - began < 1.5

    def test_expired(self, api: Api) -> None:
        deployed = Captured(api)
        [id_] = deployed.written("a")
        deployed.expire(id_)
        assert api.client.post(f"/predictions/{id_}/feedback", json=Z).status_code == 404

    def test_someone_elses(self, api: Api) -> None:
        [id_] = Captured(api).written("a")
        answer = api.as_("predict", owner="other").post(f"/predictions/{id_}/feedback", json=Z)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert api.as_("predict").post(f"/predictions/{id_}/feedback", json=Z).status_code == 200

    def test_fields(self, api: Api) -> None:
        for body in ({}, {"label": "positive", "weight": 1}):
            assert api.client.post(f"/predictions/{new_id('pr')}/feedback", json=body).status_code == 422


class TestDataset:
    @pytest.mark.parametrize(
        ("task", "told", "inputs", "types"),
        [
            ("one", "positive", {"tweet": "a good day"}, ["string", "string"]),
            ("pair", "positive", {"premise": "a good day", "hypothesis": "it is good"}, ["string", "string", "string"]),
            ("many", ["positive"], {"text": "a good day"}, ["string", "list of strings"]),
            ("number", 0.5, {"text": "a good day"}, ["string", "float"]),
            ("words", ["O", "O", "O"], {"tokens": ["my", "good", "day"]}, ["list of strings", "list of strings"]),
            (
                "span",
                {"text": ["good"], "answer_start": [12]},
                {"question": "is it good", "context": "the day was good"},
                ["string", "string", "answers"],
            ),
        ],
    )
    def test_has_the_columns_of_the_task(self, api: Api, task: str, told: Any, inputs: Any, types: list[str]) -> None:
        deployed = Captured(api, task)
        ids = deployed.written(*INPUTS[task])
        assert api.client.post(f"/predictions/{ids[0]}/feedback", json={"label": told}).status_code == 200
        answer = api.client.post("/deployments/default/captures/dataset", json={"name": "lately"})
        assert answer.status_code == 201, answer.text
        dataset = answer.json()
        assert answer.headers["Location"] == f"/datasets/{dataset['id']}"
        assert (dataset["name"], dataset["rows"], dataset["source"]) == ("lately", 2, "deployment:default")
        label = list(TASKS[task].values())[-1] if task != "many" else "labels"
        assert [column["type"] for column in dataset["columns"]] == [*types, "string", "float", "string", "string"]
        first, second = rows_of(api, dataset)
        assert {name: first[name] for name in inputs} == inputs
        assert first[label] == told
        assert second[label] is None
        assert first["student"] == deployed.student
        assert api.client.get(f"/datasets/{dataset['id']}/rows").json()["data"] == [first, second]

        spec = {
            "task": TASKS[task],
            "dataset": {"id": dataset["id"]},
            "teachers": [{"kind": "local", "model": f"student:{deployed.student}"}],
            "student": {"kind": "from_teacher", "layers": 1},
        }
        validated = api.client.post("/jobs/validate", json=spec)
        problems = [] if validated.status_code == 200 else validated.json()["errors"]
        # Two rows are too few for a split; of columns and their types nothing is wrong.
        assert not [one for one in problems if not one["pointer"].startswith("/dataset")], validated.text

    def test_validates_as_a_job(self, api: Api) -> None:
        deployed = Captured(api)
        deployed.written(*(f"a good day {number}" for number in range(60)))
        dataset = api.client.post("/deployments/default/captures/dataset", json={"labels": "both"}).json()
        spec = {
            "task": TASKS["one"],
            "dataset": {"id": dataset["id"]},
            "teachers": [{"kind": "local", "model": f"student:{deployed.student}"}],
            "student": {"kind": "from_teacher", "layers": 1},
        }
        validated = api.client.post("/jobs/validate", json=spec)
        assert validated.status_code == 200, validated.text

    def test_a_column_that_the_task_has_too(self, api: Api) -> None:
        """The label's column is named `answer`, so the student's answer is `captured_answer`."""
        Captured(api).written("a")
        dataset = api.client.post("/deployments/default/captures/dataset", json={}).json()
        names = ["tweet", "answer", "captured_answer", "score", "captured_at", "student"]
        assert [column["name"] for column in dataset["columns"]] == names
        assert dataset["name"] == "default captures"

    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            ("feedback", ["neutral", None]),
            ("answers", ["positive", "negative"]),
            ("both", ["neutral", "negative"]),
        ],
    )
    def test_labels(self, api: Api, labels: str, expected: list[Any]) -> None:
        deployed = Captured(api)
        [first] = deployed.written("a", answers=[[{"label": "positive", "score": 0.9}]])
        deployed.written("b", answers=[[{"label": "negative", "score": 0.6}]])
        api.client.post(f"/predictions/{first}/feedback", json={"label": "neutral"})
        dataset = api.client.post("/deployments/default/captures/dataset", json={"labels": labels}).json()
        rows = rows_of(api, dataset)
        assert [row["answer"] for row in rows] == expected
        assert [row["score"] for row in rows] == [0.9, 0.6]
        assert json.loads(rows[0]["captured_answer"]) == [{"label": "positive", "score": 0.9}]

    def test_only_what_the_student_was_unsure_of(self, api: Api) -> None:
        deployed = Captured(api)
        for score in (0.9, 0.6, 0.7):
            deployed.written(f"at {score}", answers=[[Label(label="positive", score=score)]])
        body = {"only_unsure_below": 0.7}
        [row] = rows_of(api, api.client.post("/deployments/default/captures/dataset", json=body).json())
        assert row["tweet"] == "at 0.6"
        nothing = api.client.post("/deployments/default/captures/dataset", json={"only_unsure_below": 0.1})
        assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_captured")
        assert "only_unsure_below" in nothing.json()["hint"]

    def test_inputs_that_do_not_suit_are_left_out(self, api: Api) -> None:
        deployed = Captured(api)
        answers: list[Answer] = [[Label(label="positive", score=1.0)]]
        deployed.written(Question("is it", "it is"), Pair("a", "b"), "a\0b", Words(("a", "b")), answers=answers)
        [row] = rows_of(api, api.client.post("/deployments/default/captures/dataset", json={}).json())
        assert row["tweet"] == "a b"

    def test_nothing_captured(self, api: Api) -> None:
        deployed = Captured(api)
        answer = api.client.post("/deployments/default/captures/dataset", json={})
        assert (answer.status_code, answer.json()["code"]) == (409, "nothing_captured")
        assert "capture" in answer.json()["hint"]
        [old] = deployed.written("a")
        deployed.expire(old)
        assert api.client.post("/deployments/default/captures/dataset", json={}).status_code == 409

    def test_a_student_that_does_not_say_its_columns(self, api: Api) -> None:
        """They are named as the task's fields are."""
        Captured(api, "span", spec=False).written(INPUTS["span"][0])
        dataset = api.client.post("/deployments/default/captures/dataset", json={}).json()
        assert [column["name"] for column in dataset["columns"]][:3] == ["question", "context", "answers"]


class TestWholeWay:
    def test_from_a_call_to_a_dataset(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        body = {"student": student, "capture": {"redact": ["email"]}}
        assert api.client.put("/deployments/default", json=body).status_code == 201
        texts = ["a good day for ann@example.com", "a bad day"]
        answer = api.client.post("/predict", json={"inputs": texts})
        id_ = answer.headers["X-Limbeck-Prediction"]
        told = api.client.post(f"/predictions/{id_}.1/feedback", json={"label": "negative"})
        assert told.status_code == 200, told.text
        assert told.json()["answer"] == answer.json()[1]
        dataset = api.client.post("/deployments/default/captures/dataset", json={"name": "lately"}).json()
        found = {row["text"]: row["label"] for row in rows_of(api, dataset)}
        assert found == {"a good day for [redacted]": None, "a bad day": "negative"}

        off = api.client.put("/deployments/default", json={"student": student})
        assert off.status_code == 200, off.text
        assert "X-Limbeck-Prediction" not in api.client.post("/predict", json={"inputs": texts}).headers
        assert len(api.client.get("/deployments/default/captures").json()["data"]) == 2


class TestRights:
    @pytest.mark.parametrize(
        ("method", "path", "scope"),
        [
            ("GET", "/deployments/default/captures", "deploy"),
            ("DELETE", "/deployments/default/captures", "deploy"),
            ("POST", "/deployments/default/captures/dataset", "deploy"),
            ("POST", "/predictions/pr_1/feedback", "predict"),
        ],
    )
    def test_scopes(self, api: Api, method: str, path: str, scope: str) -> None:
        Captured(api).written("a")
        others = {"read", "jobs", "deploy", "predict"} - {scope}
        assert api.as_(*others).request(method, path, json=Z).status_code == 403
        assert api.as_(scope).request(method, path, json={}).status_code not in {401, 403}

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/deployments/default/captures"),
            ("DELETE", "/deployments/default/captures"),
            ("POST", "/deployments/default/captures/dataset"),
        ],
    )
    def test_another_owner_finds_nothing(self, api: Api, method: str, path: str) -> None:
        deployed = Captured(api)
        ids = deployed.written("a")
        assert api.as_("deploy", owner="other").request(method, path, json={}).status_code == 404
        assert deployed.count(ids) == 1
