"""The routes of students."""

import json
from pathlib import Path

import pytest

from tests.app.conftest import Api


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


def test_what_comes_later(api: Api) -> None:
    for part in ("disagreements", "economics"):
        answer = api.client.get(f"/students/st_1/{part}")
        assert (answer.status_code, json.loads(answer.text)["code"]) == (501, "not_available_yet")
