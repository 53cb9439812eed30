"""Deployments over HTTP: what is checked before anything moves, what is refused, and what is shown."""

from pathlib import Path
from typing import Any

import pytest

from models.tables import Student, new_id
from tests.app.conftest import Api
from tests.students import published

PASSING = {
    "format": 1,
    "metric": "accuracy",
    "rows": {"test": 5000},
    "comparisons": {"drop": {"upper_one_sided": 0.02, "confidence": 0.95}},
    "arms": {
        "distilled": {
            "agreement_lower_bound": 0.96,
            "score_lower_bound": 0.91,
            "served": "fp32",
            "precisions": {"fp32": {"p95_ms": 3.0, "bytes": 400_000}},
        }
    },
    "cascade": {
        "rows": {"validation": 100, "test": 100},
        "thresholds": [
            {"threshold": 0.5, "coverage": 0.9, "accuracy_lower_bound": 0.85, "agreement_lower_bound": 0.9},
            {"threshold": 0.7, "coverage": 0.6, "accuracy_lower_bound": 0.89, "agreement_lower_bound": 0.95},
        ],
    },
}


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("students") / "teacher", seed=2)


@pytest.fixture(scope="session")
def words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("students") / "words", "token-classification")


def proven(api: Api, folder: Path, teacher: Path | None = None, **columns: Any) -> str:
    """A student whose report has bounds and a table of thresholds; with its teacher, if there is a folder of it."""
    id_ = api.student(folder)
    artifact = None
    if teacher is not None:
        artifact = f"teachers/{new_id('tc')}"
        api.store.publish(teacher, artifact)
    with api.database.writing() as session:
        row = session.get_one(Student, id_)
        row.report, row.teacher_artifact = PASSING, artifact
        for name, value in columns.items():
            setattr(row, name, value)
    return id_


def put(api: Api, body: dict[str, Any], status: int = 200) -> Any:
    answer = api.client.put("/deployments/live", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(api: Api, body: dict[str, Any], status: int = 422) -> list[tuple[str, str]]:
    before = api.client.get("/deployments/live")
    answer = put(api, body, status)
    assert api.client.get("/deployments/live").text.split('"instance"')[0] == before.text.split('"instance"')[0]
    return [(problem["pointer"], problem["code"]) for problem in answer["errors"]]


class TestWhatIsShown:
    def test_everything_that_was_wanted(
        self, api: Api, student_folder: Path, other_folder: Path, teacher_folder: Path
    ) -> None:
        one, two = proven(api, student_folder, teacher_folder), proven(api, other_folder)
        body: dict[str, Any] = {
            "student": one,
            "gate": {"max_drop": 0.04, "min_metric": 0.9, "max_latency_ms": 5, "max_bytes": 500_000},
            "canary": {"student": two, "fraction": 0.25},
            "shadow": {"student": two, "fraction": 0.5},
            "fallback": {"target_accuracy": 0.88},
            "auto": {"min_inputs": 500},
            "capture": {"sample": 0.1, "redact": ["email"]},
        }
        made = put(api, body, 201)
        assert made["canary"] == body["canary"]
        assert made["shadow"] == body["shadow"]
        assert {name: value for name, value in made["fallback"].items() if value is not None} == {
            "to": "teacher",
            "threshold": 0.7,
            "target_accuracy": 0.88,
            "expected_coverage": 0.6,
        }
        assert made["auto"]["min_inputs"] == 500
        assert (made["capture"]["sample"], made["capture"]["redact"]) == (0.1, ["email"])
        assert made["gate"]["min_metric"] == 0.9
        assert api.client.get("/deployments/live").json() == made
        assert api.client.get("/deployments").json()["data"] == [made]
        (change,) = api.client.get("/deployments/live/history").json()["data"]
        assert (change["verb"], change["gate"]) == ("put", made["gate"])
        assert change["traffic"] == {name: made[name] for name in ("canary", "shadow", "fallback", "auto", "capture")}
        assert "on the worker's host" in change["reason"]

    def test_what_was_read_can_be_put(self, api: Api, student_folder: Path, teacher_folder: Path) -> None:
        student = proven(api, student_folder, teacher_folder)
        made = put(api, {"student": student, "fallback": {"target_agreement": 0.9}, "capture": {}}, 201)
        sent = {name: made[name] for name in ("student", "gate", "canary", "shadow", "fallback", "auto", "capture")}
        assert put(api, sent) == made
        moved = put(api, sent | {"capture": None})
        assert (moved["version"], moved["capture"], moved["fallback"]) == (2, None, made["fallback"])

    def test_a_rollback_restores_what_was(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        one, two = proven(api, student_folder), proven(api, other_folder)
        first = put(api, {"student": one, "gate": {"max_drop": 0.03}, "capture": {"sample": 0.5}}, 201)
        put(api, {"student": two, "gate": {"max_drop": 0.02}})
        back = api.client.post("/deployments/live/rollback").json()
        assert [back[name] for name in ("student", "gate", "capture", "version")] == [
            one,
            first["gate"],
            first["capture"],
            3,
        ]


class TestGate:
    def test_it_fails_and_is_overridden(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        one, two = proven(api, student_folder), proven(api, other_folder)
        put(api, {"student": one}, 201)
        body = {"student": two, "gate": {"max_drop": 0.01, "min_agreement": 0.99, "max_bytes": 10}}
        answer = put(api, body, 409)
        assert answer["code"] == "gate_failed"
        assert '"override"' in answer["hint"]
        assert [(problem["pointer"], problem["code"]) for problem in answer["errors"]] == [
            ("/gate/max_drop", "gate_failed"),
            ("/gate/min_agreement", "gate_failed"),
            ("/gate/max_bytes", "gate_failed"),
        ]
        assert "400,000 bytes" in answer["errors"][2]["message"]
        assert api.client.get("/deployments/live").json()["student"] == one
        assert put(api, body | {"override": "an outage"})["student"] == two
        newest = api.client.get("/deployments/live/history").json()["data"][0]
        assert newest["verb"] == "override"
        assert newest["reason"].startswith("an outage\n")
        assert "400,000 bytes" in newest["reason"]
        assert api.client.post("/predict/live", json={"inputs": "a"}).headers["X-Limbeck-Student"] == two

    def test_that_of_the_job(self, api: Api, student_folder: Path) -> None:
        spec = {"promote": {"deployment": "other", "gate": {"max_drop": 0.01}}}
        student = proven(api, student_folder)
        with api.database.writing() as session:
            row = session.get_one(Student, student)
            row.manifest = row.manifest | {"spec": spec}
        assert refused(api, {"student": student}, 409) == [("/student", "gate_failed")]

    def test_the_gate_and_the_health_at_once(self, api: Api, damaged_folder: Path) -> None:
        student = proven(api, damaged_folder)
        found = refused(api, {"student": student, "gate": {"max_drop": 0.01}}, 409)
        assert found == [("/gate/max_drop", "gate_failed"), ("/student", "student_unhealthy")]


class TestRefused:
    @pytest.mark.parametrize(
        ("parts", "pointer", "code"),
        [
            ({"canary": {"student": "st_1", "fraction": 0}}, "/canary/fraction", "invalid"),
            ({"canary": {"student": "st_1", "fraction": 1}}, "/canary/fraction", "invalid"),
            ({"canary": {"student": "teacher", "fraction": 0.5}}, "/canary/student", "invalid"),
            ({"shadow": {"student": "st_1", "fraction": 1.1}}, "/shadow/fraction", "invalid"),
            ({"fallback": {}}, "/fallback", "one_threshold"),
            ({"fallback": {"threshold": 0.5, "target_accuracy": 0.9}}, "/fallback", "one_threshold"),
            ({"fallback": {"to": "st_UP", "threshold": 0.5}}, "/fallback/to", "invalid"),
            ({"fallback": {"threshold": 2}}, "/fallback/threshold", "invalid"),
            ({"auto": {}}, "/auto", "auto_without_candidate"),
            ({"capture": {"redact": ["("]}}, "/capture/redact/0", "bad_pattern"),
            ({"gate": {"max_drop": -1}}, "/gate/max_drop", "invalid"),
            ({"gate": {"max_latency_ms": 0}}, "/gate/max_latency_ms", "invalid"),
            ({"override": ""}, "/override", "invalid"),
        ],
    )
    def test_by_its_shape(self, api: Api, parts: dict[str, Any], pointer: str, code: str) -> None:
        assert refused(api, {"student": "st_1", **parts}) == [(pointer, code)]

    def test_students_that_are_not_there(self, api: Api, student_folder: Path) -> None:
        theirs = api.student(student_folder, owner="other")
        mine = proven(api, student_folder)
        body = {
            "student": mine,
            "canary": {"student": theirs, "fraction": 0.5},
            "shadow": {"student": "st_none"},
            "fallback": {"to": "st_none", "threshold": 0.5},
        }
        nobody = api.as_("deploy")
        answer = nobody.put("/deployments/live", json=body)
        assert answer.json()["code"] == "not_found"
        assert [problem["pointer"] for problem in answer.json()["errors"]] == [
            "/canary/student",
            "/shadow/student",
            "/fallback/to",
        ]
        assert refused(api, {"student": "st_none", "fallback": {"threshold": 0.5}}) == [("/student", "not_found")]

    def test_students_that_answer_otherwise(self, api: Api, student_folder: Path, words_folder: Path) -> None:
        one, words = proven(api, student_folder), api.student(words_folder)
        body = {
            "student": one,
            "canary": {"student": words, "fraction": 0.5},
            "shadow": {"student": words},
            "fallback": {"to": words, "threshold": 0.5},
        }
        pointers = ("/canary/student", "/shadow/student", "/fallback/to")
        assert refused(api, body) == [(pointer, "incompatible_student") for pointer in pointers]
        assert refused(api, {"student": words, "fallback": {"to": words, "threshold": 0.5}}) == [
            ("/fallback", "fallback_unsupported")
        ]

    def test_whoever_does_not_give_its_answers_on_record(
        self, api: Api, student_folder: Path, damaged_folder: Path
    ) -> None:
        one, damaged = proven(api, student_folder, damaged_folder), api.student(damaged_folder)
        body = {"student": one, "canary": {"student": damaged, "fraction": 0.5}, "shadow": {"student": damaged}}
        assert refused(api, body, 409) == [
            ("/canary/student", "student_unhealthy"),
            ("/shadow/student", "student_unhealthy"),
        ]
        fallback = {"student": one, "fallback": {"to": damaged, "threshold": 0.5}}
        assert refused(api, fallback, 409) == [("/fallback/to", "student_unhealthy")]
        teacher = {"student": one, "fallback": {"threshold": 0.5}}
        assert refused(api, teacher, 409) == [("/fallback/to", "student_unhealthy")]

    def test_fallbacks_without_a_teacher_or_a_threshold(
        self, api: Api, student_folder: Path, teacher_folder: Path
    ) -> None:
        bare, whole = proven(api, student_folder), proven(api, student_folder, teacher_folder)
        answer = put(api, {"student": bare, "fallback": {"threshold": 0.5}}, 422)
        assert answer["code"] == "teacher_not_exported"
        assert "export.teacher true" in answer["hint"]
        assert answer["errors"][0]["pointer"] == "/fallback/to"
        answer = put(api, {"student": whole, "fallback": {"target_accuracy": 0.99}}, 422)
        assert (answer["code"], answer["errors"][0]["pointer"]) == ("target_unreachable", "/fallback/target_accuracy")
        assert "89 %" in answer["detail"]
        put(api, {"student": whole, "fallback": {"threshold": 0.5}}, 201)


@pytest.mark.parametrize("part", ["canary", "shadow", "fallback"])
def test_whoever_answers_is_not_deleted(api: Api, student_folder: Path, other_folder: Path, part: str) -> None:
    one, two = proven(api, student_folder), proven(api, other_folder)
    named = {
        "canary": {"student": two, "fraction": 0.5},
        "shadow": {"student": two},
        "fallback": {"to": two, "threshold": 0.5},
    }
    put(api, {"student": one, part: named[part]}, 201)
    answer = api.client.delete(f"/students/{two}")
    assert (answer.status_code, answer.json()["code"]) == (409, "student_deployed")
    assert api.client.get(f"/students/{two}").json()["deployments"] == ["live"]
    put(api, {"student": one})
    assert api.client.delete(f"/students/{two}").status_code == 204
