"""The job spec: what is accepted, what it resolves to, and every problem with its place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.errors import Invalid
from models.specs import DeploymentSpec, Fallback, JobSpec, ResolvedSpec, Traffic, parse_job, resolve

LEAST: dict[str, Any] = {
    "task": {"kind": "text-classification", "text": "text", "label": "label"},
    "dataset": {"id": "ds_1"},
    "teachers": [{"kind": "local", "model": "package:somebody/model"}],
    "student": {"kind": "from_teacher", "layers": 2},
}

LOCAL = {"kind": "local", "model": "package:a/b"}
RECORDED = {"kind": "recorded", "logits": "z"}
NUMBER = {"kind": "text-regression", "text": "a", "text_pair": "b", "target": "y"}
CLASSIC = ["soft_targets", "hard_labels"]
QUESTIONS = {"kind": "question-answering", "question": "q", "context": "c", "answers": "a"}


def resolved(document: dict[str, Any]) -> ResolvedSpec:
    return resolve(parse_job(document))


def found(document: Any) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        parse_job(document)
    return [(problem.pointer, problem.code) for problem in caught.value.problems]


class TestResolving:
    def test_four_fields_are_enough(self) -> None:
        spec = resolved(LEAST)
        assert [objective.kind for objective in spec.stages[0].phases[0].objectives] == ["soft_targets", "hard_labels"]
        assert (spec.seed, spec.control, spec.export.precision, spec.resources.device) == (0, True, "auto", "auto")

    def test_short_forms_say_the_same(self) -> None:
        student = LEAST["student"]
        rest = {name: value for name, value in LEAST.items() if name != "student"}
        objectives = [
            {"kind": "soft_targets", "temperature": 3, "weight": 0.25},
            {"kind": "hard_labels", "weight": 0.75},
        ]
        schedule = {"epochs": 5}
        method = {"preset": "hinton", "temperature": 3, "alpha": 0.25}
        documents = [
            {**LEAST, "method": method, "schedule": schedule},
            {**LEAST, "objectives": objectives, "schedule": schedule},
            {**LEAST, "phases": [{"objectives": objectives, "schedule": schedule}]},
            {**rest, "stages": [{"student": student, "method": method, "schedule": schedule}]},
            {**rest, "stages": [{"student": student, "phases": [{"objectives": objectives, "schedule": schedule}]}]},
        ]
        first, *others = [resolved(document).model_dump() for document in documents]
        assert all(other == first for other in others)

    @given(
        temperature=st.floats(0.01, 1000),
        alpha=st.floats(0, 1),
        epochs=st.integers(1, 1000),
        layers=st.none() | st.integers(1, 96) | st.lists(st.integers(0, 95), min_size=1, unique=True).map(sorted),
    )
    def test_what_is_stored_is_what_was_resolved(
        self, temperature: float, alpha: float, epochs: int, layers: int | list[int] | None
    ) -> None:
        spec = resolved(
            {
                **LEAST,
                "student": {"kind": "from_teacher", "layers": layers},
                "method": {"preset": "hinton", "temperature": temperature, "alpha": alpha},
                "schedule": {"epochs": epochs},
            }
        )
        assert ResolvedSpec.model_validate_json(spec.model_dump_json()) == spec
        weights = [getattr(objective, "weight", 0.0) for objective in spec.stages[0].phases[0].objectives]
        assert sum(weights) == pytest.approx(1)


def kinds(method: Any, task: Any = None) -> list[list[str]]:
    spec = resolved({**LEAST, "method": method, **({"task": task} if task else {})})
    return [[objective.kind for objective in phase.objectives] for phase in spec.stages[0].phases]


class TestMethods:
    def test_each_stands_for_phases(self) -> None:
        assert kinds("hinton") == [CLASSIC]
        assert kinds("fitnets") == [["hidden_states"], CLASSIC]
        assert kinds("attention-transfer") == [[*CLASSIC, "attention_transfer"]]
        assert kinds("tinybert") == [["embeddings", "hidden_states", "attention_scores"], ["soft_targets"]]
        assert kinds("minilm") == [["relations"], CLASSIC]

    def test_a_number_has_no_distribution(self) -> None:
        assert kinds("hinton", NUMBER) == [["logit_distance", "hard_labels"]]
        assert kinds("tinybert", NUMBER)[1] == ["logit_distance"]

    def test_a_first_phase_may_have_its_own_schedule(self) -> None:
        method = {"preset": "minilm", "first": {"epochs": 7}}
        spec = resolved({**LEAST, "method": method, "schedule": {"epochs": 2}})
        assert [phase.schedule.epochs for phase in spec.stages[0].phases] == [7, 2]

    def test_a_chain_and_an_ensemble(self) -> None:
        stage = {"student": {"kind": "from_teacher", "layers": 2}}
        document = {**LEAST, "teachers": [LOCAL, LOCAL], "stages": [stage, {**stage, "teacher": "original"}]}
        del document["student"]
        assert [one.teacher for one in resolved(document).stages] == ["previous", "original"]


class TestProblems:
    def test_all_at_once(self) -> None:
        assert found({}) == [("/task", "missing"), ("/dataset", "missing"), ("/teachers", "missing")]

    def test_not_an_object(self) -> None:
        assert found([]) == [("", "invalid")]

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"task": {"text": "text"}}, ("/task/kind", "missing")),
            ({"task": {**LEAST["task"], "max_length": 4}}, ("/task/max_length", "invalid")),
            ({"task": {"kind": "text-generation"}}, ("/task", "not_available_yet")),
            (
                {"task": {**QUESTIONS, "max_length": 100, "stride": 60}},
                ("/task", "impossible_stride"),
            ),
            ({"task": {"kind": "poetry"}}, ("/task", "unknown_kind")),
            ({"dataset": {"train": "a", "test": "b"}}, ("/dataset/validation", "missing")),
            ({"teachers": []}, ("/teachers", "invalid")),
            ({"teachers": [{"kind": "local", "model": "../x"}]}, ("/teachers/0/model", "bad_reference")),
            ({"teachers": [{"kind": "api", "url": "x"}]}, ("/teachers/0", "not_available_yet")),
            ({"student": {"kind": "from_teacher", "layers": [2, 1]}}, ("/student/layers", "impossible_layers")),
            ({"student": {"kind": "fresh", "hidden_size": 10, "heads": 3}}, ("/student", "impossible_student")),
            ({"student": None}, ("/student", "missing")),
            ({"method": "alchemy"}, ("/method", "unknown_kind")),
            ({"objectives": [{"kind": "hard_labels", "weight": 0}]}, ("/objectives", "no_weight")),
            (
                {"objectives": [{"kind": "soft_targets", "beta": 0.3}]},
                ("/objectives/0/beta", "ambiguous"),
            ),
            ({"combine": "logits"}, ("/combine", "one_teacher")),
            ({"teachers": [{**LOCAL, "weight": 0}]}, ("/teachers", "no_weight")),
            ({"teachers": [LOCAL, {"kind": "self"}]}, ("/teachers/1", "self_alone")),
            ({"teachers": [{"kind": "self", "ema": 0.99, "generations": 2}]}, ("/teachers/0", "ambiguous")),
            ({"teachers": [{"kind": "self"}]}, ("/teachers/0/model", "missing")),
            ({"teachers": [{"kind": "recorded"}]}, ("/teachers/0", "one_column")),
            ({"teachers": [RECORDED]}, ("/student/kind", "no_network")),
            (
                {"teachers": [{"kind": "recorded", "logits": "z"}], "task": QUESTIONS},
                ("/teachers/0", "teacher_unsupported"),
            ),
            (
                {"teachers": [LOCAL, LOCAL], "objectives": [{"kind": "logit_distance"}]},
                ("/objectives/0", "combine_logits_needed"),
            ),
            ({"teachers": [LOCAL, LOCAL], "method": "tinybert"}, ("/method", "one_teacher_needed")),
            (
                {"teachers": [{"kind": "self", "ema": 0.9, "model": "package:x/y"}], "method": "minilm"},
                ("/method", "one_teacher_needed"),
            ),
            ({"objectives": [{"kind": "hidden_states"}]}, ("/objectives", "no_output_objective")),
            (
                {"phases": [{"objectives": [{"kind": "relations"}]}]},
                ("/phases/0", "no_output_objective"),
            ),
            ({"task": NUMBER, "objectives": [{"kind": "soft_targets"}]}, ("/objectives/0", "objective_unsupported")),
            (
                {"task": NUMBER, "promote": {"deployment": "a", "gate": {"min_agreement": 0.9}}},
                ("/promote/gate/min_agreement", "gate_unsupported"),
            ),
            (
                {"task": NUMBER, "teachers": [{**LOCAL, "labels": {"LABEL_0": "score"}}]},
                ("/teachers/0/labels", "no_labels_to_name"),
            ),
            ({"method": "hinton", "objectives": [{"kind": "hard_labels"}]}, ("/objectives", "ambiguous")),
            ({"stages": [{"student": LEAST["student"]}]}, ("/student", "ambiguous")),
            ({"promote": {"deployment": "Not OK"}}, ("/promote/deployment", "invalid")),
            (
                {"promote": {"deployment": "ok", "gate": {"max_bytes": 0}}},
                ("/promote/gate/max_bytes", "invalid"),
            ),
            (
                {"export": {"teacher": True}, "teachers": [LOCAL, LOCAL]},
                ("/export/teacher", "teacher_not_exportable"),
            ),
            (
                {"export": {"teacher": True}, "teachers": [RECORDED]},
                ("/export/teacher", "teacher_not_exportable"),
            ),
            (
                {"export": {"teacher": True}, "teachers": [{"kind": "self", "ema": 0.9, "model": "package:x/y"}]},
                ("/export/teacher", "teacher_not_exportable"),
            ),
            ({"resources": {"gpus": 2}}, ("/resources/gpus", "not_available_yet")),
            ({"webhook": {"url": "ftp://example.org"}}, ("/webhook/url", "invalid")),
            ({"webhook": {"url": "https://example.org", "secret": "a/b"}}, ("/webhook/secret", "invalid")),
            ({"schedule": {"learning_rate": float("nan")}}, ("/schedule/learning_rate", "invalid")),
            ({"a/b~c": 1}, ("/a~1b~0c", "unknown_field")),
        ],
    )
    def test_one(self, change: dict[str, Any], problem: tuple[str, str]) -> None:
        assert problem in found({**LEAST, **change})

    def test_a_local_teacher_is_exported(self) -> None:
        assert resolved({**LEAST, "export": {"teacher": True}}).export.teacher

    def test_one_problem_names_its_place(self) -> None:
        with pytest.raises(Invalid) as caught:
            parse_job({**LEAST, "resources": {"gpus": 2}})
        assert caught.value.code == "not_available_yet"
        assert caught.value.message.startswith("/resources/gpus: ")

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(JobSpec.model_fields)), inner),
        )
    )
    def test_nonsense_is_never_anything_but_invalid(self, document: Any) -> None:
        with pytest.raises(Invalid):
            parse_job(document)


class TestDeployments:
    def test_a_student_is_enough(self) -> None:
        spec = DeploymentSpec.model_validate({"student": "st_1"})
        assert spec.model_dump(exclude_none=True) == {"student": "st_1"}

    @pytest.mark.parametrize(
        ("fallback", "target"),
        [
            ({"threshold": 0.5}, None),
            ({"target_accuracy": 0.9}, ("accuracy", 0.9)),
            ({"to": "st_1", "target_agreement": 0.8}, ("agreement", 0.8)),
            # As it is shown once the target was looked up.
            ({"threshold": 0.5, "target_accuracy": 0.9, "expected_coverage": 0.7}, ("accuracy", 0.9)),
        ],
    )
    def test_when_a_fallback_answers(self, fallback: dict[str, Any], target: Any) -> None:
        assert Fallback(**fallback).target == target

    @pytest.mark.parametrize(
        "fallback",
        [
            {},
            {"threshold": 0.5, "target_accuracy": 0.9},
            {"target_agreement": 0.9, "target_accuracy": 0.9},
            {"threshold": 0.5, "expected_coverage": 0.7},
        ],
    )
    def test_one_way_to_say_when(self, fallback: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="give one of threshold, target_accuracy and target_agreement"):
            Fallback(**fallback)

    @pytest.mark.parametrize("part", ["canary", "shadow"])
    def test_auto_needs_somebody_to_decide_about(self, part: str) -> None:
        candidate = {part: {"student": "st_1", "fraction": 0.5}}
        assert Traffic.model_validate({"auto": {}, **candidate}).auto is not None
        with pytest.raises(ValidationError) as caught:
            Traffic.model_validate({"auto": {}})
        (error,) = caught.value.errors()
        assert (error["loc"], error["type"]) == (("auto",), "auto_without_candidate")

    def test_a_broken_canary_is_one_problem(self) -> None:
        with pytest.raises(ValidationError) as caught:
            Traffic.model_validate({"auto": {}, "canary": {"student": "st_1", "fraction": 5}})
        assert [error["loc"] for error in caught.value.errors()] == [("canary", "fraction")]
