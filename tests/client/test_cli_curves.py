"""Curves as a line of text, and the picture of a job."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from limbeck.cli.curves import curves_of, followed, span, sparkline
from limbeck.cli.picture import picture
from limbeck.objects import Event, Job, JobError, Point


class TestSparkline:
    def test_from_the_least_to_the_greatest(self) -> None:
        assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
        assert sparkline([3, 2, 1], 8)[0] == "█"

    def test_more_values_than_blocks_are_averaged(self) -> None:
        assert sparkline([0.0] * 50 + [1.0] * 50, 4) == "▁▁██"

    def test_a_constant_is_a_level_line(self) -> None:
        assert sparkline([0.5, 0.5, 0.5], 8) == "▄▄▄"

    def test_what_is_no_number_is_a_dot(self) -> None:
        assert sparkline([0, math.nan, math.inf, 1], 8) == "▁··█"
        assert sparkline([math.nan], 8) == "·"

    def test_a_scale_that_is_shared(self) -> None:
        scale = span([[0.0, 1.0], [0.4, 0.6]])
        assert scale == (0.0, 1.0)
        assert sparkline([0.4, 0.6], 8, scale) == "▄▅"

    def test_nothing(self) -> None:
        assert sparkline([], 8) == sparkline([1.0], 0) == ""
        assert span([[], [math.nan]]) is None

    @given(st.lists(st.floats(), min_size=1, max_size=200), st.integers(1, 50))
    def test_never_wider_and_always_blocks(self, values: list[float], width: int) -> None:
        drawn = sparkline(values, width)
        assert len(drawn) == min(width, len(values))
        assert set(drawn) <= set("▁▂▃▄▅▆▇█·")


def test_curves_are_in_the_order_of_training() -> None:
    points = [
        Point("distilled", 0, 1, "loss", 1, 0.3),
        Point("distilled", 0, 0, "loss", 20, 0.5),
        Point("distilled", 0, 0, "loss", 3, 0.7),
        Point("control", 0, 0, "validation_accuracy", 3, 0.6),
        Point("distilled", 1, 0, "loss", 1, 0.2),
    ]
    assert curves_of(points) == {
        "distilled": {"loss": [0.7, 0.5, 0.3, 0.2]},
        "control": {"validation_accuracy": [0.6]},
    }


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ({"kind": "text-classification"}, "validation_accuracy"),
        ({"kind": "text-classification", "multi_label": True}, "validation_micro_f1"),
        ({"kind": "text-regression"}, "validation_pearson"),
        ({"kind": "token-classification"}, "validation_f1"),
        ({"kind": "question-answering"}, "validation_f1"),
        (None, "validation_accuracy"),
    ],
)
def test_the_metric_that_is_followed_is_the_tasks(task: dict[str, Any] | None, name: str) -> None:
    assert followed({"task": task}) == ("loss", name)


class TestPicture:
    def _job(self, **more: Any) -> Job:
        return Job(**{"id": "job_1", "name": "tweets", "status": "running", "created_at": datetime.now(UTC), **more})

    def _drawn(self, job: Job, *, width: int = 100, **more: Any) -> str:
        terminal = Console(width=width, record=True, force_terminal=True)
        terminal.print(picture(job, more.get("curves", {}), more.get("events", []), 5.0, keys=more.get("keys", "")))
        return terminal.export_text()

    def test_where_it_is(self) -> None:
        shown = self._drawn(self._job(phase="distil", progress=0.45, eta_seconds=75.0, attempt=2), keys="q leaves")
        for words in ("tweets", "job_1", "attempt 2", "45%", "1 min 15 s left", "teach ✓", "distil …", "q leaves"):
            assert words in shown
        assert "export ✓" not in shown

    def test_curves_of_each_arm(self) -> None:
        curves = {
            "distilled": {"loss": [0.8, 0.4], "validation_accuracy": [0.5, 0.7]},
            "control": {"loss": [0.8, 0.6]},
        }
        shown = self._drawn(self._job(phase="distil"), curves=curves)
        assert "validation accuracy" in shown
        lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith(("distilled", "control"))}
        assert "█▁" in lines["distilled"]
        assert "0.7000" in lines["distilled"]
        assert "█▁" in lines["control"]
        assert "0.6000" in lines["control"]

    def test_the_last_events(self) -> None:
        event = Event(7, "checkpoint", "Kept [what] there is.", datetime.now(UTC))
        assert "checkpoint  Kept [what] there is." in self._drawn(self._job(), events=[event])

    def test_why_it_waits(self) -> None:
        waiting = self._drawn(self._job(status="queued", waiting_reason="Waiting for a GPU worker."))
        assert "waiting: Waiting for a GPU worker." in waiting
        assert "limbeck jobs resume job_1" in self._drawn(self._job(status="paused", phase="distil"))

    def test_where_it_failed(self) -> None:
        error = JobError("diverged", "the loss is not finite")
        assert "teach ✗" in self._drawn(self._job(status="failed", phase="teach", error=error))

    def test_when_it_succeeded(self) -> None:
        assert "publish ✓" in self._drawn(self._job(status="succeeded", progress=1.0, phase=None))
