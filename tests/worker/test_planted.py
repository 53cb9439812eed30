"""Cases of which the truth is known before: what the report must say of them, and how often it may be wrong.

One tiny job runs through the whole recipe: its soft targets weigh nothing, and its test rows leak into training.
Repetitions are drawn from a model of two networks' right and wrong answers, and judged by the bound of the gate.
"""

import json
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.stats import norm

from models.specs import GateSpec, TextClassification, parse_job, resolve
from tests.factories import LABELS, parquet, tiny_rows, tiny_teacher
from worker import evaluation, recipe
from worker.data import Answers, Encoded
from worker.measuring import Choice, Measured
from worker.protocol import Assignment, PhaseName, StopReason
from worker.statistics import paired
from worker.tasks import for_task
from worker.tasks.base import Split

SAME = "no difference: they answer every test row alike"
LEAKS = 5
ROWS, REPETITIONS = 2000, 200
DISCORDANT = 0.2
"""The share of rows on which one of the two networks alone is right."""


class Heard:
    """A report that keeps its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def phase(self, phase: PhaseName) -> None:
        pass

    def progress(self, progress: float, eta_seconds: float | None = None) -> None:
        pass

    def metric(self, arm: str, stage: int, phase: int, name: str, step: int, value: float) -> None:
        pass

    def event(self, code: str, message: str, **data: Any) -> None:
        self.events.append((code, message))

    def checkpoint(self, step: int, path: Path) -> None:
        pass

    def stop_requested(self) -> StopReason | None:
        return None


class Job(NamedTuple):
    """What a finished job published and said."""

    report: dict[str, Any]
    card: str
    events: list[tuple[str, str]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Soft targets of weight 0 beside hard labels; five training rows that also stand among the test rows."""
    folder = tmp_path_factory.mktemp("planted")
    tiny_teacher(folder / "models" / "tiny", labels=None, layers=2)
    texts, labels = tiny_rows(260)
    parts = ["train"] * 150 + ["validation"] * 50 + ["test"] * 60
    leaks = slice(200, 200 + LEAKS)
    texts, labels, parts = [*texts, *texts[leaks]], [*labels, *labels[leaks]], [*parts, *["train"] * LEAKS]
    sources = ["phone" if row % 4 else "web" for row in range(len(texts))]
    schedule = {"epochs": 2, "learning_rate": 2e-3, "batch_tokens": 512}
    spec = resolve(
        parse_job(
            {
                "task": {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32},
                "dataset": {"id": "ds_1", "split": "part"},
                "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": schedule, "at_chance": True}],
                "student": {"kind": "from_teacher", "layers": 1},
                "objectives": [{"kind": "soft_targets", "weight": 0}, {"kind": "hard_labels", "weight": 1}],
                "schedule": schedule,
                "evaluation": {"slices": ["source"]},
            }
        )
    )
    assignment = Assignment(
        job_id="job_1",
        attempt=1,
        spec=spec,
        datasets={"ds_1": parquet(folder / "rows.parquet", text=texts, label=labels, part=parts, source=sources)},
        models_folder=folder / "models",
        work=folder / "work",
        cache=folder / "cache",
        cache_bytes=10**9,
        tick_timeout=60,
    )
    heard = Heard()
    student = recipe.distil(assignment, heard)
    report = json.loads((student / "report.json").read_text("utf-8"))
    return Job(report, (student / "README.md").read_text("utf-8"), heard.events)


class TestAJobThatDistilsNothing:
    def test_student_and_control_are_equal_prediction_for_prediction(self, job: Job) -> None:
        assert job.report["comparisons"]["same_as_control"] is True
        gain = job.report["comparisons"]["gain_over_control"]
        assert gain["value"] == 0
        assert gain["low"] == -gain["high"] < 0
        assert job.report["comparisons"]["mcnemar_p"]["distilled_against_control"] == 1.0
        distilled, control = job.report["arms"]["distilled"], job.report["arms"]["control"]
        assert distilled["precisions"]["fp32"]["score"] == control["score"]

    def test_it_says_so(self, job: Job) -> None:
        assert job.report["verdict"].endswith(f"{SAME}.")
        assert SAME in job.card

    def test_a_leaking_test_split_is_reported(self, job: Job) -> None:
        (warning,) = [one for one in job.report["warnings"] if one["code"] == "leaking_rows_dropped"]
        assert warning["message"].startswith(f"{LEAKS} training rows whose text also stands among the")
        assert warning["message"] in job.card
        assert ("leaking_rows_dropped", warning["message"]) in job.events
        assert job.report["rows"] == {"train": 150, "validation": 50, "test": 60}

    def test_the_slices_are_of_the_test_rows(self, job: Job) -> None:
        counts: dict[str, int] = {}
        for one in job.report["slices"]:
            counts[one["name"]] = counts.get(one["name"], 0) + one["rows"]
            assert (one["drop"] is None) is (one["rows"] < 20)
        assert counts == {"text length": 60, "true label": 60, "source": 60}
        by_source = {one["value"]: one for one in job.report["slices"] if one["name"] == "source"}
        assert {value: one["rows"] for value, one in by_source.items()} == {"phone": 45, "web": 15}
        # The parts together are the whole.
        for arm in ("teacher", "distilled", "control", "untrained"):
            right = sum(one["arms"][arm] * one["rows"] for one in by_source.values())
            assert right / 60 == pytest.approx(job.report["arms"][arm]["score"])

    def test_its_cascade_begins_with_the_student_alone(self, job: Job) -> None:
        first, *others = job.report["cascade"]["thresholds"]
        assert job.report["cascade"]["rows"] == {"validation": 50, "test": 60}
        assert first["coverage"] == 1
        assert all(one["coverage"] < 1 for one in others)
        least = min(one["test"]["coverage"] for one in others)
        assert least < first["test"]["coverage"]
        # Where nearly nothing is left to the student, the two are nearly the teacher.
        assert others[-1]["agreement"] >= 1 - others[-1]["coverage"]


def test_twenty_rows_fail_an_agreement_of_95_percent_however_well_they_went() -> None:
    """20 of 20 prove 0.05^(1/20) = 0.861 and no more."""
    kind = for_task(TextClassification(kind="text-classification", text="text", label="label"))
    truth = np.arange(20) % 3
    test = Split([f"text {row}" for row in range(20)], truth, np.ones(20, np.bool_))
    encoded = Encoded([np.zeros(1, np.int32)] * 20, np.ones(20, np.int64), 0)
    perfect = Measured.of(kind, Answers.whole(np.eye(3, dtype=np.float32)[truth]), encoded, test.inputs)
    teacher = evaluation.arm(kind, {"fp32": perfect}, test, LABELS)
    student = evaluation.arm(kind, {"fp32": perfect}, test, LABELS, teacher=perfect)
    report = evaluation.report(
        kind,
        rows={"train": 1, "validation": 1, "test": 20},
        labels=LABELS,
        arms={"teacher": teacher, "distilled": student, "untrained": student},
        comparisons=evaluation.compare(
            kind, test, teacher=perfect.predictions, distilled=perfect.predictions, control=None
        ),
        precision=Choice("fp32", "The job asks for fp32."),
        gate=GateSpec(min_agreement=0.95),
        control_reason="disabled",
        counters={},
        seconds={},
        warnings=[],
        device="cpu",
    )
    assert report["arms"]["distilled"]["agreement"] == 1.0
    assert report["arms"]["distilled"]["agreement_lower_bound"] == pytest.approx(0.05 ** (1 / 20), abs=1e-6)
    assert report["arms"]["distilled"]["score_lower_bound"] == pytest.approx(0.05 ** (1 / 20), abs=1e-6)
    assert report["gate"]["passed"] is False


class TestRates:
    """How often `max_drop` 0.03 at 95 % holds over 200 test sets of 2000 rows, on a fifth of which one network alone is
    right. The share that passes is a binomial of 200: within three standard errors of what the normal law says."""

    LIMIT, CONFIDENCE = 0.03, 0.95

    def passed(self, drop: float) -> float:
        """The share of test sets on which a student with such a true drop passes."""
        generator = np.random.default_rng(7)
        first, second = (DISCORDANT + drop) / 2, (DISCORDANT - drop) / 2
        passes = 0
        for repetition in range(REPETITIONS):
            both, teacher, student, _ = generator.multinomial(ROWS, [0.7, first, second, 0.3 - DISCORDANT])
            one, two = np.zeros((2, ROWS, 1))
            one[: both + teacher] = 1
            two[:both] = 1
            two[both + teacher : both + teacher + student] = 1
            bound = paired(
                one,
                two,
                lambda sums: sums[..., 0] / ROWS,
                confidence=self.CONFIDENCE,
                seed=repetition,
                resamples=200,
            )
            passes += bound.upper_one_sided <= self.LIMIT
        return passes / REPETITIONS

    def expected(self, drop: float) -> float:
        """The power by the normal law: P(value + z·σ ≤ limit)."""
        error = sqrt((DISCORDANT - drop**2) / ROWS)
        return float(norm.cdf((self.LIMIT - drop) / error - norm.ppf(self.CONFIDENCE)))

    def slack(self, rate: float) -> float:
        return 3 * sqrt(rate * (1 - rate) / REPETITIONS)

    def test_a_student_that_loses_nothing_passes_with_the_power_that_one_computes(self) -> None:
        assert self.expected(0.0) == pytest.approx(0.912, abs=1e-3)
        assert self.passed(0.0) == pytest.approx(self.expected(0.0), abs=self.slack(self.expected(0.0)))

    def test_a_student_that_is_five_points_worse_fails(self) -> None:
        assert self.passed(0.05) <= 1 - self.CONFIDENCE

    def test_a_student_at_the_limit_passes_as_seldom_as_the_confidence_promises(self) -> None:
        promised = 1 - self.CONFIDENCE
        passed = self.passed(self.LIMIT)
        assert 0 < passed <= promised + self.slack(promised)
