"""How a deployment changes, by rows alone: the gate in force, fallbacks, promotions, rollbacks, and the history."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import func, select

from models import deployments
from models.database import Database
from models.errors import Conflict, Invalid
from models.promotion import plan
from models.specs import DeploymentSpec, GateSpec
from models.tables import Deployment, DeploymentChange, Student, new_id

GOOD = {"max_drop": 0.04}
STRICT = {"max_drop": 0.001}
LABELS = ("bad", "good")
TABLE: dict[str, Any] = {
    "rows": {"validation": 500, "test": 500},
    "thresholds": [
        {
            "threshold": threshold,
            "coverage": coverage,
            "accuracy": bound + 0.02,
            "accuracy_lower_bound": bound,
            "agreement": bound + 0.05,
            "agreement_lower_bound": bound + 0.04,
            "test": {"coverage": coverage, "accuracy": bound, "agreement": bound},
        }
        for threshold, coverage, bound in ((0.4, 1.0, 0.80), (0.6, 0.9, 0.85), (0.8, 0.7, 0.90), (0.95, 0.3, 0.88))
    ],
}


def report(*, drop: float = 0.02, cascade: Any = None) -> dict[str, Any]:
    return {
        "format": 1,
        "metric": "accuracy",
        "rows": {"test": 5000},
        "comparisons": {"drop": {"upper_one_sided": drop, "confidence": 0.95}},
        "arms": {"distilled": {"agreement_lower_bound": 0.9}},
        "cascade": cascade,
    }


class Here:
    """A database with students of one owner and one deployment, `live`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def student(
        self,
        *,
        gate: Mapping[str, Any] | None = None,
        teacher: bool = False,
        labels: Sequence[str] = LABELS,
        kind: str = "text-classification",
        document: Mapping[str, Any] | None = None,
        **task: Any,
    ) -> str:
        """A published student's row; `gate` is that of its job."""
        id_ = new_id("st")
        promote = None if gate is None else {"deployment": "live", "gate": dict(gate)}
        spec = {"task": {"kind": kind, **task}, "promote": promote}
        with self.database.writing() as session:
            session.add(
                Student(
                    id=id_,
                    owner="me",
                    name="",
                    job_id=new_id("job"),
                    hash="0" * 64,
                    artifact=f"students/{id_}",
                    teacher_artifact="teachers/one" if teacher else None,
                    manifest={"task": kind, "labels": list(labels), "spec": spec},
                    report=dict(report() if document is None else document),
                )
            )
        return id_

    def put(self, student: str, **parts: Any) -> Deployment:
        wanted = DeploymentSpec.model_validate({"student": student, **parts})
        with self.database.writing() as session:
            return deployments.put(session, owner="me", name="live", wanted=wanted, by="key_1")[0]

    def promote(self, student: str, gate: Mapping[str, Any] | None = None) -> Deployment:
        resolved = None if gate is None else GateSpec(**gate).model_dump(mode="json")
        with self.database.writing() as session:
            return deployments.promote(
                session, owner="me", name="live", student_id=student, by="job_1", gate=resolved, reason="It held."
            )

    def rollback(self) -> Deployment:
        with self.database.writing() as session:
            row = deployments.find(session, owner="me", name="live", for_update=True)
            return deployments.rollback(session, row, student_id=deployments.before(session, row), by="key_1")

    def live(self) -> Deployment:
        with self.database.reading() as session:
            return deployments.find(session, owner="me", name="live")

    def history(self) -> Sequence[DeploymentChange]:
        """Newest first."""
        with self.database.reading() as session:
            return deployments.history(session, deployments.find(session, owner="me", name="live"))

    def moves(self) -> int:
        """How often anything changed, of any deployment."""
        with self.database.reading() as session:
            return session.scalar(select(func.count()).select_from(DeploymentChange)) or 0

    def verbs(self) -> list[str]:
        return [change.verb for change in self.history()]


@pytest.fixture
def here(sqlite_database: Database) -> Here:
    return Here(sqlite_database)


def refused(here: Here, student: str, **parts: Any) -> list[tuple[str, str]]:
    """Pointers and codes of a PUT that must be refused and change nothing."""
    before = here.moves()
    with pytest.raises((Invalid, Conflict)) as caught:
        here.put(student, **parts)
    assert here.moves() == before
    return [(problem.pointer, problem.code) for problem in caught.value.problems]


class TestTheGateInForce:
    def test_the_puts_own(self, here: Here) -> None:
        student = here.student(gate=STRICT)
        row = here.put(student, gate=GOOD)
        assert row.gate is not None
        assert (row.gate["max_drop"], here.history()[0].gate) == (0.04, row.gate)
        assert "at most 2 points below" in here.history()[0].reason

    def test_else_the_deployments(self, here: Here) -> None:
        here.put(here.student(), gate={"max_drop": 0.02})
        worse = here.student(gate=GOOD, document=report(drop=0.03))
        assert refused(here, worse) == [("/student", "gate_failed")]

    def test_else_that_of_the_students_job(self, here: Here) -> None:
        assert refused(here, here.student(gate=STRICT)) == [("/student", "gate_failed")]
        row = here.put(here.student(gate=GOOD))
        assert row.gate == GateSpec(**GOOD).model_dump(mode="json")

    def test_else_none(self, here: Here) -> None:
        row = here.put(here.student())
        assert (row.gate, here.history()[0].reason) == (None, "")

    def test_an_empty_one_replaces_it(self, here: Here) -> None:
        here.put(here.student(), gate={"max_drop": 0.03})
        row = here.put(here.student(document=report(drop=0.5)), gate={})
        assert row.gate == GateSpec().model_dump(mode="json")

    def test_a_failure_says_which_limit_and_what_to_do(self, here: Here) -> None:
        with pytest.raises(Conflict) as caught:
            here.put(here.student(), gate={"max_drop": 0.01, "min_agreement": 0.5, "min_metric": 0.5})
        error = caught.value
        assert error.code == "gate_failed"
        assert [problem.pointer for problem in error.problems] == ["/gate/max_drop", "/gate/min_metric"]
        assert "the gate allows 1 points" in error.problems[0].message
        assert '"override"' in str(error.hint)

    def test_a_report_without_bounds_does_not_pass(self, here: Here) -> None:
        student = here.student(document={"format": 1})
        assert refused(here, student, gate=GOOD) == [("/gate/max_drop", "gate_failed")]
        assert here.put(student, gate=GOOD, override="known").student_id == student

    def test_what_serves_is_not_decided_again(self, here: Here) -> None:
        student = here.student(document=report(drop=0.2))
        here.put(student, gate=STRICT, override="the old one is down")
        row = here.put(student, capture={})
        assert (row.version, row.gate, here.verbs()) == (2, here.history()[1].gate, ["put", "override"])
        assert refused(here, student, gate={"max_drop": 0.1}) == [("/gate/max_drop", "gate_failed")]


class TestOverride:
    def test_it_is_kept_with_what_failed(self, here: Here) -> None:
        student = here.student(gate=GOOD, document=report(drop=0.2))
        here.put(student, override="the customer asked for it")
        (change,) = here.history()
        why, failed = change.reason.split("\n")
        assert (change.verb, change.student_id, why) == ("override", student, "the customer asked for it")
        assert "at most 20 points below" in failed
        here.promote(here.student())
        here.rollback()
        assert here.history()[-1].reason == change.reason

    def test_a_gate_that_holds_is_not_overridden(self, here: Here) -> None:
        here.put(here.student(), gate=GOOD, override="in any case")
        assert here.verbs() == ["put"]
        assert "in any case" not in here.history()[0].reason

    def test_it_does_not_help_a_student_that_is_not_there(self, here: Here) -> None:
        assert refused(here, "st_none", override="please") == [("/student", "not_found")]


class TestCandidates:
    def test_a_canary_needs_no_gate(self, here: Here) -> None:
        stable, worse = here.student(), here.student(document=report(drop=0.9))
        row = here.put(stable, gate=GOOD, canary={"student": worse, "fraction": 0.1}, shadow={"student": worse})
        assert row.traffic == {
            "canary": {"student": worse, "fraction": 0.1},
            "shadow": {"student": worse, "fraction": 1.0},
        }
        assert here.history()[0].traffic == row.traffic

    @pytest.mark.parametrize("part", ["canary", "shadow"])
    def test_unless_it_may_come_to_serve_by_itself(self, here: Here, part: str) -> None:
        stable, worse = here.student(), here.student(document=report(drop=0.9))
        parts: dict[str, Any] = {"gate": GOOD, part: {"student": worse, "fraction": 0.1}}
        assert refused(here, stable, **parts, auto={}) == [(f"/{part}/student", "gate_failed")]
        assert here.put(stable, **parts, auto={"promote": False}).version == 1
        assert here.put(stable, **parts, auto={}, override="we look on").version == 2
        assert here.put(stable, **parts, auto={}, capture={}).version == 3

    @pytest.mark.parametrize("part", ["canary", "shadow"])
    @pytest.mark.parametrize(
        ("other", "what"),
        [
            ({"labels": ("bad", "fine")}, "labels"),
            ({"kind": "text-regression"}, "task"),
            ({"multi_label": True}, "multi_label"),
            ({"text_pair": "hypothesis"}, "text_pair"),
        ],
    )
    def test_they_answer_alike(self, here: Here, part: str, other: dict[str, Any], what: str) -> None:
        stable, apart = here.student(), here.student(**other)
        with pytest.raises(Invalid) as caught:
            here.put(stable, **{part: {"student": apart, "fraction": 0.5}})
        (problem,) = caught.value.problems
        assert (problem.pointer, problem.code) == (f"/{part}/student", "incompatible_student")
        assert f"its {what} is" in problem.message

    def test_the_order_of_labels_may_differ(self, here: Here) -> None:
        assert here.put(here.student(), shadow={"student": here.student(labels=("good", "bad"))}).version == 1

    def test_every_problem_at_once(self, here: Here) -> None:
        found = refused(
            here,
            here.student(document=report(drop=0.5)),
            gate=GOOD,
            canary={"student": "st_none", "fraction": 0.1},
            shadow={"student": here.student(labels=("x", "y"))},
            fallback={"target_accuracy": 0.9},
        )
        assert found == [
            ("/canary/student", "not_found"),
            ("/shadow/student", "incompatible_student"),
            ("/fallback/to", "teacher_not_exported"),
            ("/fallback/target_accuracy", "target_unreachable"),
            ("/gate/max_drop", "gate_failed"),
        ]

    def test_who_is_not_the_callers_is_not_there(self, here: Here) -> None:
        stable, other = here.student(), here.student()
        wanted = DeploymentSpec.model_validate({"student": stable, "shadow": {"student": other}})
        with here.database.reading() as session:
            found = plan(session, None, wanted, may_use=lambda row: row.id == stable)
        assert [(problem.pointer, problem.code) for problem in found.problems] == [("/shadow/student", "not_found")]
        assert found.answering == {"/student": stable}

    def test_a_put_without_it_ends_it(self, here: Here) -> None:
        stable, other = here.student(), here.student()
        here.put(stable, canary={"student": other, "fraction": 0.1}, auto={}, capture={"sample": 0.5})
        row = here.put(stable, capture={"sample": 0.5})
        assert (row.student_id, list(row.traffic), row.version) == (stable, ["capture"], 2)

    def test_equal_content_changes_nothing(self, here: Here) -> None:
        stable, other = here.student(teacher=True, document=report(cascade=TABLE)), here.student()
        parts: dict[str, Any] = {
            "gate": GOOD,
            "canary": {"student": other, "fraction": 0.1},
            "fallback": {"target_accuracy": 0.85},
            "auto": {"max_error_rate": None},
            "capture": {"redact": ["email"]},
        }
        first = here.put(stable, **parts)
        assert here.put(stable, **parts).version == 1
        assert here.put(stable, gate=first.gate, **first.traffic).version == 1
        assert len(here.history()) == 1
        assert here.put(stable, **parts | {"auto": {}}).version == 2


class TestDecidingForItself:
    def test_a_candidate_is_promoted(self, here: Here) -> None:
        stable, other = here.student(gate=GOOD), here.student()
        here.put(stable, canary={"student": other, "fraction": 0.1}, auto={}, capture={})
        with here.database.writing() as session:
            row = deployments.find(session, owner="me", name="live")
            deployments.promote_candidate(session, row, expected_version=1, reason="Every bound holds.")
        row, change = here.live(), here.history()[0]
        assert (row.student_id, row.version, list(row.traffic)) == (other, 2, ["capture"])
        assert row.gate == GateSpec(**GOOD).model_dump(mode="json")
        assert (change.verb, change.by, change.previous_student_id) == ("promote", "auto", stable)
        assert here.rollback().student_id == stable

    def test_a_shadow_too(self, here: Here) -> None:
        other = here.student()
        here.put(here.student(), shadow={"student": other}, auto={})
        with here.database.writing() as session:
            row = deployments.find(session, owner="me", name="live")
            deployments.promote_candidate(session, row, expected_version=1, reason="Every bound holds.")
        assert here.live().student_id == other

    def test_a_candidate_is_ended(self, here: Here) -> None:
        stable = here.student(teacher=True)
        parts: dict[str, Any] = {"fallback": {"threshold": 0.5}, "capture": {}}
        here.put(stable, canary={"student": here.student(), "fraction": 0.1}, auto={}, **parts)
        with here.database.writing() as session:
            row = deployments.find(session, owner="me", name="live")
            deployments.abort_candidate(session, row, expected_version=1, reason="Too many errors.")
        row, change = here.live(), here.history()[0]
        assert (row.student_id, row.version, set(row.traffic)) == (stable, 2, {"fallback", "capture"})
        assert (change.verb, change.by, change.reason, change.student_id) == (
            "abort",
            "auto",
            "Too many errors.",
            stable,
        )

    @pytest.mark.parametrize("verb", [deployments.promote_candidate, deployments.abort_candidate])
    def test_not_where_somebody_was_faster(self, here: Here, verb: Any) -> None:
        stable, other = here.student(), here.student()
        here.put(stable, canary={"student": other, "fraction": 0.1}, auto={})
        with here.database.reading() as session:
            stale = deployments.find(session, owner="me", name="live")
        here.put(stable)
        for expected in (1, 2):  # at 2 there is no candidate
            with here.database.writing() as session, pytest.raises(Conflict) as caught:
                verb(session, session.merge(stale), expected_version=expected, reason="")
            assert caught.value.code == "version_mismatch"
        assert here.live().version == 2


class TestFallback:
    @pytest.mark.parametrize(
        ("target", "threshold", "coverage"),
        [
            ({"target_accuracy": 0.85}, 0.6, 0.9),
            ({"target_accuracy": 0.86}, 0.8, 0.7),
            ({"target_agreement": 0.9}, 0.8, 0.7),
            ({"target_accuracy": 0.5}, 0.4, 1.0),
        ],
    )
    def test_a_target_is_a_threshold(
        self, here: Here, target: dict[str, float], threshold: float, coverage: float
    ) -> None:
        row = here.put(here.student(teacher=True, document=report(cascade=TABLE)), fallback=target)
        stored = {name: value for name, value in row.traffic["fallback"].items() if value is not None}
        assert stored == {"to": "teacher", "threshold": threshold, "expected_coverage": coverage, **target}

    def test_none_reaches_it(self, here: Here) -> None:
        student = here.student(teacher=True, document=report(cascade=TABLE))
        with pytest.raises(Invalid) as caught:
            here.put(student, fallback={"target_accuracy": 0.93})
        (problem,) = caught.value.problems
        assert (problem.pointer, problem.code) == ("/fallback/target_accuracy", "target_unreachable")
        assert "the best is 90 %, at the threshold 0.8" in problem.message

    def test_a_report_without_a_table(self, here: Here) -> None:
        student = here.student(teacher=True)
        assert refused(here, student, fallback={"target_agreement": 0.9}) == [
            ("/fallback/target_agreement", "target_unreachable")
        ]
        assert here.put(student, fallback={"threshold": 0.9}).traffic["fallback"]["threshold"] == 0.9

    def test_a_teacher_that_was_not_published(self, here: Here) -> None:
        with pytest.raises(Invalid) as caught:
            here.put(here.student(), fallback={"threshold": 0.9})
        assert caught.value.problems[0].pointer == "/fallback/to"
        assert caught.value.code == "teacher_not_exported"
        assert "export.teacher true" in str(caught.value.hint)

    @pytest.mark.parametrize("task", [{"kind": "text-regression"}, {"multi_label": True}])
    def test_only_with_one_label(self, here: Here, task: dict[str, Any]) -> None:
        student = here.student(teacher=True, **task)
        assert refused(here, student, fallback={"threshold": 0.9}) == [("/fallback", "fallback_unsupported")]

    def test_another_student_by_a_threshold_alone(self, here: Here) -> None:
        student, larger = here.student(document=report(cascade=TABLE)), here.student()
        assert refused(here, student, fallback={"to": larger, "target_accuracy": 0.8}) == [
            ("/fallback/target_accuracy", "target_unreachable")
        ]
        assert here.put(student, fallback={"to": larger, "threshold": 0.8}).version == 1
        apart = here.student(labels=("a", "b"))
        assert refused(here, student, fallback={"to": apart, "threshold": 0.8}) == [
            ("/fallback/to", "incompatible_student")
        ]

    def test_another_students_table_after_a_promotion(self, here: Here) -> None:
        here.put(here.student(teacher=True, document=report(cascade=TABLE)), fallback={"target_accuracy": 0.85})
        rows = [row | {"threshold": row["threshold"] / 2, "coverage": 0.5} for row in TABLE["thresholds"]]
        row = here.promote(here.student(teacher=True, document=report(cascade={"thresholds": rows})))
        assert (row.traffic["fallback"]["threshold"], row.traffic["fallback"]["expected_coverage"]) == (0.3, 0.5)

    @pytest.mark.parametrize("new", [{"teacher": False}, {"teacher": True}, {"teacher": True, "labels": ("a", "b")}])
    def test_it_ends_where_the_new_one_cannot_have_it(self, here: Here, new: dict[str, Any]) -> None:
        first = here.student(teacher=True, document=report(cascade=TABLE))
        here.put(first, fallback={"target_accuracy": 0.85}, capture={})
        assert list(here.promote(here.student(**new)).traffic) == ["capture"]

    @pytest.mark.parametrize("what", ["other labels", "itself", "deleted"])
    def test_another_student_that_cannot_answer_for_the_new_one(self, here: Here, what: str) -> None:
        larger = here.student()
        here.put(here.student(), fallback={"to": larger, "threshold": 0.8})
        assert list(here.promote(here.student()).traffic) == ["fallback"]
        if what == "deleted":
            with here.database.writing() as session:
                session.delete(session.get_one(Student, larger))
        new = larger if what == "itself" else here.student(labels=("a", "b") if what == "other labels" else LABELS)
        assert here.promote(new).traffic == {}


class TestPromotionAndRollback:
    def test_a_promotion_ends_a_canary_and_keeps_the_capture(self, here: Here) -> None:
        stable, other, new = here.student(), here.student(), here.student()
        here.put(stable, canary={"student": other, "fraction": 0.1}, auto={}, capture={"sample": 0.5})
        row = here.promote(new, GOOD)
        assert (row.student_id, list(row.traffic)) == (new, ["capture"])
        assert here.history()[0].gate == row.gate == GateSpec(**GOOD).model_dump(mode="json")

    def test_a_rollback_restores_gate_fallback_and_capture(self, here: Here) -> None:
        first = here.student(teacher=True)
        here.put(first, gate=GOOD)
        there = here.put(
            first,
            gate={"max_drop": 0.03},
            canary={"student": here.student(), "fraction": 0.1},
            fallback={"threshold": 0.7},
            capture={"sample": 0.5},
        )
        here.put(here.student(), gate={"max_drop": 0.02}, capture={"sample": 1.0})
        row = here.rollback()
        assert (row.student_id, row.gate) == (first, there.gate)
        assert row.traffic == {part: there.traffic[part] for part in ("fallback", "capture")}
        assert here.history()[0].traffic == row.traffic

    def test_a_change_of_traffic_is_no_move(self, here: Here) -> None:
        first, second = here.student(), here.student()
        for student, parts in ((first, {}), (second, {}), (second, {"capture": {}}), (second, {"gate": GOOD})):
            here.put(student, **parts)
        assert here.rollback().student_id == first
        with pytest.raises(Conflict) as caught:
            here.rollback()
        assert caught.value.code == "nothing_before"

    def test_twenty_and_twenty_back(self, here: Here) -> None:
        students = [here.student() for _ in range(21)]
        here.put(students[0])
        for number, student in enumerate(students[1:]):
            assert here.promote(student, {"max_drop": 0.01 * (number + 1)}).version == number + 2
        for number in reversed(range(20)):
            row = here.rollback()
            assert row.student_id == students[number]
            limit = None if row.gate is None else row.gate["max_drop"]
            assert limit == (None if number == 0 else pytest.approx(0.01 * number))
        assert here.live().version == 41
        assert here.verbs() == ["rollback"] * 20 + ["promote"] * 20 + ["put"]
        changes = list(reversed(here.history()))
        assert [change.version for change in changes] == list(range(1, 42))
        assert all(one.student_id == two.previous_student_id for one, two in pairwise(changes))

    def test_back_and_forth_twenty_times(self, here: Here) -> None:
        first, second = here.student(), here.student()
        here.put(first)
        for _ in range(20):
            assert here.promote(second).student_id == second
            assert here.rollback().student_id == first
        assert here.live().version == 41

    def test_a_rollback_to_whom_it_does_not_lead(self, here: Here) -> None:
        first, second = here.student(), here.student()
        here.put(first)
        here.put(second)
        with here.database.writing() as session, pytest.raises(Conflict) as caught:
            row = deployments.find(session, owner="me", name="live", for_update=True)
            deployments.rollback(session, row, student_id=second, by="key_1")
        assert caught.value.code == "version_mismatch"


def test_whoever_answers_is_pointed_at(database: Database) -> None:
    here = Here(database)
    stable, canary, shadow, larger, idle = (here.student() for _ in range(5))
    here.put(
        stable,
        canary={"student": canary, "fraction": 0.1},
        shadow={"student": shadow},
        fallback={"to": larger, "threshold": 0.8},
    )
    with database.writing() as session:
        wanted = DeploymentSpec.model_validate({"student": larger, "shadow": {"student": larger}})
        deployments.put(session, owner="me", name="also", wanted=wanted, by="key_1")
    with database.reading() as session:
        found = deployments.pointing_at(session, [stable, canary, shadow, larger, idle])
    assert found == {stable: ["live"], canary: ["live"], shadow: ["live"], larger: ["also", "live"], idle: []}
    here.put(stable)
    with database.reading() as session:
        assert deployments.pointing_at(session, [canary, larger]) == {canary: [], larger: ["also"]}
