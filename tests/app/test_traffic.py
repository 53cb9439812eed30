"""What happens to a call beside the answer of the stable student: canary, shadow, fallback and capture, over HTTP."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from models import deployments
from models.answers import agree
from models.runtime import Runtime
from models.tables import ArmCount, Student
from tests.app.conftest import Api, eventually
from tests.factories import tiny_rows
from tests.students import published

TEXTS = tiny_rows(40)[0]
CERTAIN = 1 - 1e-12
"""A share that is below 1, as it must be, and that every call is in."""


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that takes no texts, and so fails with every call of another kind."""
    return published(tmp_path_factory.mktemp("kinds") / "spans", "question-answering")


@pytest.fixture(scope="module")
def one(student_folder: Path) -> Runtime:
    return Runtime.open(student_folder)


@pytest.fixture(scope="module")
def other(other_folder: Path) -> Runtime:
    return Runtime.open(other_folder)


def route(api: Api, **traffic: Any) -> None:
    """Give the deployment `default` this traffic, as another replica would, and let this one know."""
    with api.database.writing() as session:
        row = deployments.find(session, owner="default", name="default")
        row.traffic, row.version = traffic, row.version + 1
    api.app.state.shelf.refresh()


def ready(api: Api, *students: str) -> None:
    eventually(lambda: set(students) <= set(api.app.state.shelf.loaded))


def ask(api: Api, inputs: Any = "a good day", sticky: str | None = None, **parameters: Any) -> Any:
    headers = {} if sticky is None else {"X-Limbeck-Sticky": sticky}
    answer = api.client.post("/predict", json={"inputs": inputs, "parameters": parameters}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def counted(api: Api, arm: str) -> dict[str, int]:
    """The figures of an arm, as they were put down last."""
    names = ("calls", "inputs", "errors", "compared", "agreed")
    with api.database.reading() as session:
        row = session.scalar(select(ArmCount).where(ArmCount.arm == arm).order_by(ArmCount.version.desc()))
        return {name: 0 if row is None else getattr(row, name) for name in names}


def eventually_counted(api: Api, arm: str, **expected: int) -> None:
    eventually(lambda: {name: counted(api, arm)[name] for name in expected} == expected)


def agreeing(one: Runtime, other: Runtime) -> int:
    """On how many of the texts."""
    return sum(agree(*pair, one.kind) for pair in zip(one.predict(TEXTS), other.predict(TEXTS), strict=True))


class TestPlain:
    def test_headers_and_counts(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        answer = ask(api, TEXTS[:3])
        assert answer.headers["X-Limbeck-Arm"] == "stable"
        assert {"X-Limbeck-Answered-By", "X-Limbeck-Prediction"}.isdisjoint(answer.headers)
        eventually_counted(api, "stable", calls=1, inputs=3, errors=0)

    def test_traffic_that_cannot_be_read_is_none(self, api: Api, student_folder: Path) -> None:
        student = api.deployed(student_folder)
        route(api, canary={"student": "st_2", "fraction": 7})
        answer = ask(api)
        assert (answer.headers["X-Limbeck-Student"], answer.headers["X-Limbeck-Arm"]) == (student, "stable")
        assert api.app.state.shelf.pointer("default", "default").version == 2

    def test_a_sticky_key_has_a_limit(self, api: Api) -> None:
        answer = api.client.post("/predict", json={"inputs": "a"}, headers={"X-Limbeck-Sticky": "a" * 201})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/header/x-limbeck-sticky"


class TestCanary:
    def test_a_key_stays_in_its_arm(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        stable, canary = api.deployed(student_folder), api.student(other_folder)
        route(api, canary={"student": canary, "fraction": 0.3})
        ready(api, canary)
        arms: dict[str, str] = {}
        for key in [f"user {number}" for number in range(30)] * 2:
            answer = ask(api, sticky=key)
            arm = answer.headers["X-Limbeck-Arm"]
            assert answer.headers["X-Limbeck-Student"] == {"stable": stable, "canary": canary}[arm]
            assert arms.setdefault(key, arm) == arm
        assert set(arms.values()) == {"stable", "canary"}
        calls = 2 * list(arms.values()).count("canary")
        eventually_counted(api, "canary", calls=calls, inputs=calls, errors=0)
        eventually_counted(api, "stable", calls=60 - calls)

    def test_its_answers_are_compared(
        self, api: Api, student_folder: Path, other_folder: Path, one: Runtime, other: Runtime
    ) -> None:
        api.deployed(student_folder)
        canary = api.student(other_folder)
        route(api, canary={"student": canary, "fraction": CERTAIN})
        ready(api, canary)
        # The best label is the same whatever the caller chooses.
        answer = ask(api, TEXTS, top_k=1, function_to_apply="none")
        assert answer.json() == other.predict(TEXTS, top_k=1, function_to_apply="none")
        eventually_counted(api, "canary", calls=1, inputs=40, compared=40, agreed=agreeing(one, other))
        eventually_counted(api, "stable", calls=0)

    @pytest.mark.parametrize("wrong", ["damaged", "fails"])
    def test_what_is_wrong_with_it_is_its_own_error(
        self, api: Api, student_folder: Path, damaged_folder: Path, spans: Path, one: Runtime, wrong: str
    ) -> None:
        stable, canary = api.deployed(student_folder), api.student({"damaged": damaged_folder, "fails": spans}[wrong])
        route(api, canary={"student": canary, "fraction": CERTAIN})
        shelf = api.app.state.shelf
        eventually(lambda: shelf.at_hand(canary) is not None or not shelf.ask_for(canary))
        for _ in range(3):
            answer = ask(api, TEXTS[:2])
            assert (answer.headers["X-Limbeck-Student"], answer.headers["X-Limbeck-Arm"]) == (stable, "stable")
            assert answer.json() == one.predict(TEXTS[:2])
        eventually_counted(api, "canary", calls=3, errors=3)
        eventually_counted(api, "stable", calls=3, errors=0)


class TestShadow:
    def test_it_is_compared_and_never_answers(
        self, api: Api, student_folder: Path, other_folder: Path, one: Runtime, other: Runtime
    ) -> None:
        stable, shadow = api.deployed(student_folder), api.student(other_folder)
        route(api, shadow={"student": shadow})
        ready(api, shadow)
        answer = ask(api, TEXTS)
        assert answer.headers["X-Limbeck-Student"] == stable
        assert answer.json() == one.predict(TEXTS)
        eventually_counted(api, "shadow", calls=1, inputs=40, errors=0, compared=40, agreed=agreeing(one, other))
        eventually_counted(api, "stable", calls=1)

    def test_a_student_agrees_with_itself(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        shadow = api.student(student_folder)
        route(api, shadow={"student": shadow})
        ready(api, shadow)
        ask(api, TEXTS, top_k=1)
        eventually_counted(api, "shadow", compared=40, agreed=40)

    def test_what_is_wrong_with_it_hurts_nobody(self, api: Api, student_folder: Path, spans: Path) -> None:
        api.deployed(student_folder)
        shadow = api.student(spans)
        route(api, shadow={"student": shadow})
        ready(api, shadow)
        ask(api, TEXTS)
        eventually_counted(api, "shadow", calls=1, errors=1, compared=0)


class TestFallback:
    @pytest.fixture
    def threshold(self, one: Runtime) -> float:
        """Half of the texts are surer."""
        scores = sorted(answer[0]["score"] for answer in one.predict(TEXTS))  # type: ignore[index,typeddict-item]
        return float(scores[20] + scores[19]) / 2

    @pytest.fixture
    def teacher(self, api: Api, student_folder: Path, other_folder: Path) -> str:
        """A deployed student with another student's folder as its teacher's export; its id."""
        student = api.deployed(student_folder)
        api.store.publish(other_folder, "teachers/one")
        with api.database.writing() as session:
            session.get_one(Student, student).teacher_artifact = "teachers/one"
        return student

    @pytest.mark.parametrize("parameters", [{}, {"top_k": 1, "function_to_apply": "none"}])
    def test_the_unsure_are_asked_of_the_teacher(
        self, api: Api, teacher: str, one: Runtime, other: Runtime, threshold: float, parameters: dict[str, Any]
    ) -> None:
        route(api, fallback={"threshold": threshold})
        answer = ask(api, TEXTS, **parameters)
        assert answer.headers["X-Limbeck-Answered-By"] == "mixed"
        assert answer.headers["X-Limbeck-Student"] == teacher
        sure = [labels[0]["score"] >= threshold for labels in one.predict(TEXTS)]  # type: ignore[index,typeddict-item]
        assert sum(sure) == 20
        both = zip(sure, one.predict(TEXTS, **parameters), other.predict(TEXTS, **parameters), strict=True)
        assert answer.json() == [mine if is_sure else theirs for is_sure, mine, theirs in both]
        eventually_counted(api, "fallback", calls=1, inputs=20, errors=0)
        eventually_counted(api, "stable", calls=1, inputs=40)

    def test_who_answered(self, api: Api, teacher: str, other_folder: Path) -> None:
        larger = api.student(other_folder)
        for fallback, expected in (
            ({"threshold": 1e-9}, "student"),
            ({"threshold": 1.0}, "teacher"),
            ({"threshold": 1.0, "to": larger}, larger),
        ):
            route(api, fallback=fallback)
            assert ask(api, TEXTS[:2]).headers["X-Limbeck-Answered-By"] == expected

    def test_without_a_teacher_the_student_answers(self, api: Api, student_folder: Path, one: Runtime) -> None:
        api.deployed(student_folder)
        route(api, fallback={"threshold": 1.0})
        answer = ask(api, TEXTS)
        assert answer.headers["X-Limbeck-Answered-By"] == "student"
        assert answer.json() == one.predict(TEXTS)
        eventually_counted(api, "fallback", calls=1, inputs=0, errors=1)


def test_a_call_that_is_kept_has_a_name(api: Api, student_folder: Path) -> None:
    api.deployed(student_folder)
    route(api, capture={"sample": 1.0})
    assert ask(api).headers["X-Limbeck-Prediction"].startswith("pr_")
