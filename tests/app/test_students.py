"""The routes of students."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.routes import disagreements
from models.artifacts import write_manifest
from models.specs import QuestionAnswering, TokenClassification
from models.tables import Student
from tests.app.conftest import Api
from tests.factories import LABELS
from tests.students import TAGS
from worker.tasks import for_task
from worker.tasks.base import Split


def test_read_and_list(api: Api, student_folder: Path) -> None:
    one, two = api.student(student_folder, name="a"), api.student(student_folder, name="b")
    assert [row["id"] for row in api.client.get("/students").json()["data"]] == [two, one]
    assert [row["id"] for row in api.client.get("/students?name=a").json()["data"]] == [one]
    found = api.client.get(f"/students/{one}").json()
    assert found["labels"] == ["negative", "neutral", "positive"]
    assert found["verdict"] == "It is small."
    assert found["bytes"] > 10_000
    assert api.client.get(f"/students/{one}/report").json()["gate"]["passed"] is True


def test_files(api: Api, student_folder: Path) -> None:
    student = api.student(student_folder)
    files = {file["path"]: file for file in api.client.get(f"/students/{student}/files").json()["data"]}
    assert {"student.onnx", "tokenizer.json", "config.json", "golden.json", "model.safetensors"} <= files.keys()
    for path in ("student.onnx", "config.json", "manifest.json"):
        answer = api.client.get(f"/students/{student}/files/{path}")
        assert answer.content == (api.settings.data_dir / "artifacts" / "students" / student / path).read_bytes()
        assert answer.headers["Content-Length"] == str(len(answer.content))
    etag = api.client.get(f"/students/{student}/files/config.json").headers["ETag"]
    assert etag == f'"{files["config.json"]["sha256"]}"'
    again = api.client.get(f"/students/{student}/files/config.json", headers={"If-None-Match": etag})
    assert again.status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "../config.json",
        "..%2fconfig.json",
        "%2e%2e%2f%2e%2e%2flimbeck.db",
        "%252e%252e/x",
        "..%5c..%5cx",
        "%2fetc%2fpasswd",
        "C:%5cx",
        "config.json%00",
        "config.json/",
        "%2e%2fconfig.json",
        "a" * 4000,
        "",
    ],
)
def test_only_what_the_manifest_names(api: Api, student_folder: Path, path: str) -> None:
    student = api.student(student_folder)
    answer = api.client.get(f"/students/{student}/files/{path}")
    assert answer.status_code in {404, 422}
    assert str(api.settings.data_dir) not in answer.text


def test_delete(api: Api, student_folder: Path) -> None:
    student = api.deployed(student_folder, "live")
    refused = api.client.delete(f"/students/{student}")
    assert (refused.status_code, refused.json()["code"]) == (409, "student_deployed")
    api.client.delete("/deployments/live")
    assert api.client.delete(f"/students/{student}").status_code == 204
    assert api.client.get(f"/students/{student}").status_code == 404
    assert not (api.settings.data_dir / "artifacts" / "students" / student).exists()


# --- disagreements ----------------------------------------------------------------------------------------------------


ROWS = [
    {"input": f"text {number}", "truth": truth, "teacher": {"label": "a", "score": 0.9}, "student": {"label": "b"}}
    for number, truth in enumerate([{"label": "a"}, {"label": "b"}, {"label": "c"}, None, {"label": "a"}])
]


@pytest.fixture
def differing(student_folder: Path, tmp_path: Path) -> Path:
    return with_disagreements(student_folder, tmp_path / "differing", json.dumps({"format": 1, "rows": ROWS}))


def with_disagreements(student_folder: Path, folder: Path, document: str) -> Path:
    """A copy of the student whose artifact has `document` as its disagreements."""
    shutil.copytree(student_folder, folder)
    (folder / "disagreements.json").write_text(document)
    (folder / "manifest.json").unlink()
    write_manifest(folder, kind="student", task="text-classification", labels=LABELS, max_length=32)
    return folder


class TestDisagreements:
    def test_page_by_page(self, api: Api, differing: Path) -> None:
        student = api.student(differing)
        first = api.client.get(f"/students/{student}/disagreements?limit=3").json()
        assert first["has_more"]
        assert first["data"][0] == {"object": "disagreement", "row": 0, **ROWS[0], "right": "teacher"}
        assert [row["right"] for row in first["data"]] == ["teacher", "student", "neither"]
        last = api.client.get(f"/students/{student}/disagreements?limit=3&after={first['data'][-1]['row']}").json()
        assert [(row["row"], row["right"]) for row in last["data"]] == [(3, None), (4, "teacher")]
        assert not last["has_more"]

    def test_only_some(self, api: Api, differing: Path) -> None:
        student = api.student(differing)
        chosen = {
            "right=teacher": [0, 4],
            "right=student": [1],
            "right=neither": [2],
            "right=both": [],
            "truth=a": [0, 4],
            "truth=a&after=0": [4],
            "truth=b&right=teacher": [],
            "truth=": [],
        }
        for asked, rows in chosen.items():
            found = api.client.get(f"/students/{student}/disagreements?{asked}").json()
            assert [row["row"] for row in found["data"]] == rows, asked

    def test_none_were_kept(self, api: Api, student_folder: Path) -> None:
        answer = api.client.get(f"/students/{api.student(student_folder)}/disagreements")
        assert (answer.status_code, answer.json()["code"]) == (404, "no_disagreements")
        assert answer.json()["hint"]

    def test_a_file_that_is_none(self, api: Api, student_folder: Path, tmp_path: Path) -> None:
        for number, document in enumerate(("{", "[]", '{"rows": [{}]}', '{"rows": 3}')):
            folder = with_disagreements(student_folder, tmp_path / f"odd{number}", document)
            answer = api.client.get(f"/students/{api.student(folder)}/disagreements")
            assert (answer.status_code, answer.json()["code"]) == (500, "artifact_damaged")

    def test_what_is_asked_wrongly(self, api: Api, differing: Path) -> None:
        answer = api.client.get(f"/students/{api.student(differing)}/disagreements?right=me&limit=0&after=-1")
        pointers = {problem["pointer"] for problem in answer.json()["errors"]}
        assert (answer.status_code, pointers) == (422, {"/query/right", "/query/limit", "/query/after"})

    def test_of_somebody_else(self, api: Api, differing: Path) -> None:
        student = api.student(differing)
        other = api.as_("read", owner="other")
        assert other.get(f"/students/{student}/disagreements").status_code == 404
        assert api.as_("predict").get(f"/students/{student}/disagreements").status_code == 403


@pytest.mark.parametrize(
    ("truth", "teacher", "student", "right"),
    [
        ({"labels": ["a", "b"]}, {"labels": ["a"]}, {"labels": ["a", "b"]}, "student"),
        (["O", "B-place"], ["O", "B-place"], ["O", "O"], "teacher"),
        ({"score": 1.0}, {"score": 1.0}, {"score": 2.0}, None),
        ({"answers": ["The Rome!", "city of Rome"]}, {"answer": "rome"}, {"answer": "City of Rome"}, "both"),
        ({"answers": []}, {"answer": "Rome"}, {"answer": ""}, "student"),
        (None, {"answer": "Rome"}, {"answer": ""}, None),
        ({"label": "a"}, {"label": None, "score": None}, {"label": "a"}, "student"),
    ],
)
def test_who_is_right(truth: Any, teacher: Any, student: Any, right: str | None) -> None:
    assert disagreements.who_is_right(truth, teacher, student) == right


@pytest.mark.parametrize(
    ("task", "predictions", "targets"),
    [
        (
            QuestionAnswering(kind="question-answering", question="q", context="c", answers="a"),
            ["The Rome.", "rome a", "", "Paris", "an answer"],
            [(("Rome", 0),), (("Paris", 0), ("Rome", 9)), (), (("Rome", 0),), ()],
        ),
        (
            TokenClassification(kind="token-classification", tokens="t", tags="g"),
            [np.array([0, 1]), np.array([0, -1]), np.array([1, 1])],
            [np.array([0, 1]), np.array([0, -1]), np.array([0, 1])],
        ),
    ],
)
def test_right_is_what_the_evaluation_calls_right(task: Any, predictions: list[Any], targets: list[Any]) -> None:
    """The measure of a task is the worker's; the API has the rows alone, and must not judge by another."""
    kind = for_task(task)
    split = Split(inputs=["x"] * len(targets), targets=targets, labelled=np.ones(len(targets), np.bool_))
    measured = kind.right(predictions, split)
    assert measured is not None
    for row, expected in enumerate(measured):
        truth, said = kind.truth(split, row, TAGS), kind.shown(predictions, row, TAGS)
        assert disagreements.who_is_right(truth, said, said) == ("both" if expected else "neither")


# --- economics --------------------------------------------------------------------------------------------------------

REPORT = {
    "seconds": {"teach": 100.0, "distil": 162.98},
    "host": {"cpu": "a processor", "cores": 2},
    "arms": {"distilled": {"served": "int8", "precisions": {"int8": {"texts_per_second": 500.0}}}},
}


@pytest.fixture
def priced(api: Api, student_folder: Path) -> str:
    """A student whose report has what its training and its answers take; its id."""
    student = api.student(student_folder)
    with api.database.writing() as session:
        row = session.get(Student, student)
        assert row is not None
        row.report = REPORT
    return student


class TestEconomics:
    def test_by_the_call(self, api: Api, priced: str) -> None:
        asked = "price_per_call=0.002&calls_per_month=2e6&host_cost_per_month=60&fallback_coverage=0.9"
        found = api.client.get(f"/students/{priced}/economics?{asked}").json()
        assert found["terms"] == {
            "price_per_call": 0.002,
            "calls_per_month": 2e6,
            "host_cost_per_month": 60.0,
            "training_cost": pytest.approx(60 * 262.98 / 2_629_800),
            "fallback_coverage": 0.9,
            "texts_per_second": 500.0,
        }
        assert (found["object"], found["student"], found["hosts"]) == ("student.economics", priced, 1)
        assert found["teacher_cost_per_month"] == pytest.approx(4000)
        assert found["student_cost_per_month"] == pytest.approx(460)
        assert found["break_even_calls_per_month"] == pytest.approx(100_000 / 3)
        assert found["break_even_months"] == pytest.approx(0.006 / 3540)
        assert found["measured_on"] == REPORT["host"]
        assert found["verdict"].startswith("At 2,000,000 calls a month the student costs 460.00")

    def test_by_the_token(self, api: Api, priced: str) -> None:
        asked = "price_per_1k_tokens=0.01&tokens_per_call=200&calls_per_month=2e6&host_cost_per_month=60"
        found = api.client.get(f"/students/{priced}/economics?{asked}&training_cost=7").json()
        assert (found["terms"]["price_per_call"], found["terms"]["training_cost"]) == (pytest.approx(0.002), 7)

    def test_a_report_without_measurements(self, api: Api, student_folder: Path) -> None:
        asked = "price_per_call=0.002&calls_per_month=2e6&host_cost_per_month=60"
        found = api.client.get(f"/students/{api.student(student_folder)}/economics?{asked}").json()
        assert (found["hosts"], found["utilisation"], found["terms"]["training_cost"]) == (1, None, 0)

    def test_every_problem_at_once(self, api: Api, priced: str) -> None:
        whole = "calls_per_month=1&host_cost_per_month=1"
        asked = {
            "": {"calls_per_month", "host_cost_per_month", "price_per_1k_tokens"},
            "price_per_call=1&calls_per_month=0&host_cost_per_month=-1": {"calls_per_month", "host_cost_per_month"},
            "calls_per_month=nan&host_cost_per_month=inf": {
                *("calls_per_month", "host_cost_per_month", "price_per_1k_tokens")
            },
            f"{whole}&price_per_call=x&training_cost=-1": {"price_per_call", "training_cost"},
            f"{whole}&price_per_call=1&fallback_coverage=1.1": {"fallback_coverage"},
            f"{whole}&price_per_call=1&fallback_coverage=0": {"fallback_coverage"},
            f"{whole}&price_per_call=1&price=2": {"price"},
            f"{whole}&price_per_call=1&price_per_1k_tokens=1&tokens_per_call=1": {"price_per_1k_tokens"},
            f"{whole}&price_per_1k_tokens=1": {"price_per_1k_tokens"},
            f"{whole}&price_per_call=1&tokens_per_call=1": {"price_per_1k_tokens"},
        }
        for query, names in asked.items():
            answer = api.client.get(f"/students/{priced}/economics?{query}")
            assert answer.status_code == 422, query
            pointers = {problem["pointer"] for problem in answer.json()["errors"]}
            assert pointers == {f"/query/{name}" for name in names}, query

    def test_the_largest_numbers_stay_numbers(self, api: Api, priced: str) -> None:
        asked = "price_per_call=1e12&calls_per_month=1e12&host_cost_per_month=1e12&training_cost=1e12"
        assert api.client.get(f"/students/{priced}/economics?{asked}&fallback_coverage=1e-300").status_code == 200

    def test_of_somebody_else(self, api: Api, priced: str) -> None:
        asked = "price_per_call=0.002&calls_per_month=2e6&host_cost_per_month=60"
        assert api.as_("read", owner="other").get(f"/students/{priced}/economics?{asked}").status_code == 404
