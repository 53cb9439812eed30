"""Live figures of calls that were answered, and candidates that decide by them for themselves."""

from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from structlog.testing import capture_logs

from models.database import Database
from models.settings import Settings
from models.tables import ArmCount, Table
from tests.app.conftest import Api, eventually, running

TEXTS = ["a great day", "the worst", "a bad one", "what a fine day", "an awful place"]


def figures(api: Api, version: int | None = None) -> dict[str, Any]:
    answer = api.client.get("/deployments/live/traffic", params={} if version is None else {"version": version})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def arms(document: dict[str, Any]) -> dict[str, Any]:
    return {arm["arm"]: arm for arm in document["arms"]}


def put(api: Api, **wanted: Any) -> None:
    answer = api.client.put("/deployments/live", json=wanted)
    assert answer.status_code in {200, 201}, answer.text


def call(api: Api, inputs: Any = TEXTS) -> str:
    """Who has answered."""
    answer = api.client.post("/predict/live", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    student: str = answer.headers["x-limbeck-student"]
    return student


def history(api: Api) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.client.get("/deployments/live/history").json()["data"]
    return found


class TestTraffic:
    def test_every_call_is_counted_in_the_arm_that_answered_it(
        self, api: Api, student_folder: Path, other_folder: Path
    ) -> None:
        one, other = api.student(student_folder), api.student(other_folder)
        put(api, student=one, canary={"student": other, "fraction": 0.5})
        answered = [call(api) for _ in range(40)]
        eventually(lambda: sum(arm["calls"] for arm in figures(api)["arms"]) == 40)
        document = figures(api)
        assert (document["object"], document["name"], document["version"]) == ("deployment.traffic", "live", 1)
        assert (document["confidence"], document["decision"]) == (0.95, None)
        for arm, student in (("stable", one), ("canary", other)):
            found = arms(document)[arm]
            assert (found["student"], found["calls"]) == (student, answered.count(student))
            assert found["inputs"] == 5 * found["calls"]
            assert found["errors"] == found["error_rate"] == found["error_rate_lower_bound"] == 0
            assert 0 < found["error_rate_upper_bound"] < 1
            assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]

    def test_before_the_first_call_nothing_is_claimed(self, api: Api, student_folder: Path) -> None:
        put(api, student=api.student(student_folder))
        (stable,) = figures(api)["arms"]
        assert (stable["arm"], stable["calls"]) == ("stable", 0)
        shown = ("error_rate", "error_rate_upper_bound", "agreement", "agreement_lower_bound", "p50_ms", "p99_ms")
        assert {stable[name] for name in shown} == {None}

    def test_figures_are_those_of_a_version(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        one, other = api.student(student_folder), api.student(other_folder)
        put(api, student=one)
        call(api)
        eventually(lambda: figures(api)["arms"][0]["calls"] == 1)
        put(api, student=other)
        assert [arm["calls"] for arm in figures(api)["arms"]] == [0]
        before = figures(api, 1)
        assert [(arm["student"], arm["calls"]) for arm in before["arms"]] == [(one, 1)]
        assert before["since"] < figures(api)["since"]

    def test_refusals(self, api: Api, student_folder: Path) -> None:
        put(api, student=api.student(student_folder))
        path = "/deployments/live/traffic"
        assert api.client.get(path, params={"version": 9}).status_code == 404
        assert api.client.get(path, params={"version": 0}).status_code == 422
        assert api.client.get("/deployments/other/traffic").status_code == 404
        assert api.as_("read", owner="somebody").get(path).status_code == 404
        assert api.as_("predict").get(path).status_code == 403
        assert api.as_("read").get(path).status_code == 200


class TestAuto:
    def test_a_canary_that_proves_itself_is_promoted(self, api: Api, student_folder: Path) -> None:
        one, other = api.student(student_folder), api.student(student_folder)
        auto = {"min_inputs": 100, "min_agreement": 0.9, "max_error_rate": 0.2, "max_latency_ratio": None}
        put(api, student=one, canary={"student": other, "fraction": 0.5}, auto=auto)
        assert figures(api)["decision"]["verdict"] == "wait"
        assert "0 inputs; 100 are asked for" in figures(api)["decision"]["reason"]

        def promoted() -> bool:
            call(api)
            return len(history(api)) == 2

        eventually(promoted, 30)
        change = history(api)[0]
        assert (change["verb"], change["by"], change["student"]) == ("promote", "auto", other)
        eventually(lambda: call(api) == other)
        ended = figures(api, 1)
        assert ended["decision"] == {"verdict": "promote", "reason": change["reason"]}
        canary = arms(ended)["canary"]
        assert canary["inputs"] >= 100
        assert canary["agreed"] == canary["compared"] > 0
        assert arms(figures(api)).keys() == {"stable"}

    def test_a_shadow_that_disagrees_is_ended_and_no_caller_has_seen_it(
        self, api: Api, student_folder: Path, other_folder: Path
    ) -> None:
        one, other = api.student(student_folder), api.student(other_folder)
        auto = {"min_inputs": 1000, "min_agreement": 0.999}
        put(api, student=one, shadow={"student": other}, auto=auto)

        def ended() -> bool:
            assert call(api) == one
            return len(history(api)) == 2

        eventually(ended, 30)
        change = history(api)[0]
        assert (change["verb"], change["by"], change["student"]) == ("abort", "auto", one)
        assert "agrees with the student that serves on at most" in change["reason"]
        assert figures(api, 1)["decision"] == {"verdict": "abort", "reason": change["reason"]}


class TestPuttingDown:
    def test_a_database_that_is_away_loses_no_call(self, api: Api, student_folder: Path) -> None:
        put(api, student=api.student(student_folder))
        call(api)
        eventually(lambda: figures(api)["arms"][0]["calls"] == 1)
        tables = [Table.metadata.tables[ArmCount.__tablename__]]
        Table.metadata.drop_all(api.database.engine, tables)
        with capture_logs() as logs:
            for _ in range(4):
                call(api)
            eventually(lambda: any(line["event"] == "figures were not written" for line in logs))
        Table.metadata.create_all(api.database.engine, tables)
        eventually(lambda: figures(api)["arms"][0]["calls"] == 5)

    def test_the_last_calls_are_put_down_at_the_end(self, settings: Settings, student_folder: Path) -> None:
        with running(settings) as api:
            put(api, student=api.student(student_folder))
            for _ in range(7):
                call(api)
        database = Database(settings.database)
        with database.reading() as session:
            assert session.scalar(select(func.sum(ArmCount.calls))) == 7
        database.close()
