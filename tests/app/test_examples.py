"""Every operation is described and has its examples; an answer fits its schema, and a body is what the API takes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app.examples import EXAMPLES, SPEC, STUDENT
from app.main import create_app
from models.settings import Settings
from tests.app.conftest import Api

Json = dict[str, Any]
FILES = {"GET /jobs/{job_id}/bundle", "GET /students/{student_id}/files/{path}", "GET /metrics"}
"""Their answer is a file, or text."""
NOT_SENT = {
    "POST /datasets": "not_available_yet",
    "POST /deployments/{name}/captures/dataset": "nothing_captured",
    "POST /predictions/{prediction_id}/feedback": "not_found",
}
"""Bodies that need what no test of a second has: the code of what is in the way, which is not the body."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Json:
    folder = tmp_path_factory.mktemp("data")
    return create_app(Settings(data_dir=folder, database_url="", broker_url="", artifacts_url="")).openapi()


def _operations(document: Json) -> dict[str, Json]:
    return {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def _fits(example: Any, schema: Json, document: Json) -> None:
    jsonschema.validate(example, {**schema, "components": document["components"]})


def test_every_operation_is_described(document: Json) -> None:
    bare = [name for name, operation in _operations(document).items() if not operation.get("description")]
    assert bare == []


def test_every_example_is_of_an_operation(document: Json) -> None:
    assert set(EXAMPLES) - _operations(document).keys() == set()


def test_every_json_body_has_an_example_that_fits(document: Json) -> None:
    for name, operation in _operations(document).items():
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            assert "example" in content, name
            _fits(content["example"], content["schema"], document)


def test_every_answer_has_an_example_that_fits(document: Json) -> None:
    for name, operation in _operations(document).items():
        for status, answer in operation["responses"].items():
            content = answer.get("content", {}).get("application/json")
            if status.startswith("2") and content is not None and name not in FILES:
                assert "example" in content, f"{name} {status}"
                _fits(content["example"], content["schema"], document)


def test_an_answer_has_every_field_of_its_object(document: Json) -> None:
    """Also those with a default: a field that is new, and in no example, would stay unknown to a reader."""
    schemas = document["components"]["schemas"]
    for name, operation in _operations(document).items():
        for status, answer in operation["responses"].items():
            content = answer.get("content", {}).get("application/json", {})
            reference = content.get("schema", {}).get("$ref")
            if status.startswith("2") and reference:
                fields = schemas[reference.rpartition("/")[2]]["properties"]
                assert fields.keys() - content["example"].keys() == set(), name


def test_errors_are_described_as_the_problems_that_they_are(document: Json) -> None:
    answers = _operations(document)["GET /jobs/{job_id}"]["responses"]
    assert "422" not in answers
    problem = answers["default"]["content"]["application/problem+json"]
    _fits(problem["example"], problem["schema"], document)


def test_the_application_takes_every_body(api: Api, student_folder: Path) -> None:
    student = api.deployed(student_folder, "sentiment")
    api.deployed(student_folder, "default")
    real = {
        SPEC["dataset"]["id"]: api.dataset(rows=200),
        STUDENT["id"]: student,
        EXAMPLES["PUT /deployments/{name}"].body["canary"]["student"]: api.student(student_folder),
        "https://example.com": "https://93.184.215.14",  # no name is resolved in a test
    }
    places = {
        "name": "sentiment",
        "deployment": "sentiment",
        "prediction_id": "pr_1",
        "version": student,
        "student_id": student,
    }
    for name, example in EXAMPLES.items():
        if example.body is None:
            continue
        text = json.dumps(example.body)
        for shown, id_ in real.items():
            text = text.replace(shown, id_)
        method, _, path = name.partition(" ")
        headers = {"Content-Type": "application/json"}
        answer = api.client.request(method, path.format(**places), content=text.encode(), headers=headers)
        if name in NOT_SENT:
            assert answer.json()["code"] == NOT_SENT[name], (name, answer.text)
        else:
            assert answer.status_code in {200, 201}, (name, answer.text)
