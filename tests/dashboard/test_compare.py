"""Several students side by side: the table, the Pareto front, their curves, and what differs in their specs."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page, expect

from app.dashboard import compare, comparison
from app.dashboard.comparison import Candidate, pareto_front
from tests.dashboard import rows
from tests.dashboard.conftest import SignIn, assert_accessible, assert_fits_a_phone
from tests.service import Service


@pytest.fixture(scope="module")
def students(service: Service) -> dict[str, str]:
    """`large` is better, `small` faster, `poor` neither; by name their ids, and the id of each one's job."""
    data = rows.dataset(service.database)
    found: dict[str, str] = {}
    for name, layers, score, p50_ms, size in (
        ("small", 1, 0.76, 0.6, 2_000_000),
        ("large", 3, 0.80, 1.8, 7_000_000),
        ("poor", 4, 0.75, 2.4, 9_000_000),
    ):
        job = rows.job(service.database, data, name=name, layers=layers, status="succeeded", attempt=1)
        rows.curve(service.database, job, "loss", range(1, 60))
        rows.curve(service.database, job, "validation_accuracy", range(20, 60, 20))
        student = rows.student(service.database, job, name=name, score=score, p50_ms=p50_ms, size=size)
        found |= {name: student, f"{name} job": job}
    return found


class TestPage:
    def test_offers_the_newest_students(self, service: Service, page: Page, students: dict[str, str]) -> None:
        page.goto(f"{service.url}/ui/compare")
        page.get_by_label("small").check()
        page.get_by_label("large").check()
        page.get_by_role("button", name="Compare").click()
        figures = page.get_by_role("table", name="Each column is a job or a student")
        expect(figures.get_by_role("columnheader")).to_have_count(2)
        page.get_by_role("link", name="Take large out").click()
        expect(figures.get_by_role("columnheader")).to_have_count(1)
        page.get_by_label("By id").fill(f"{students['poor']}, job_nothing")
        page.get_by_role("button", name="Compare").click()
        expect(figures.get_by_role("columnheader")).to_have_count(2)
        expect(page.get_by_text("There is no job or student job_nothing.")).to_be_visible()

    def test_compares(self, service: Service, page: Page, students: dict[str, str]) -> None:
        ids = f"{students['small']},{students['large']},{students['poor']}"
        page.goto(f"{service.url}/ui/compare?ids={ids}")
        best = page.get_by_role("row", name="Score (accuracy)").locator(".best")
        expect(best).to_contain_text("80.0 %")
        expect(best).to_contain_text("78.0 % to 82.0 %")
        expect(page.get_by_role("row", name="Latency p50").locator(".best")).to_contain_text("0.6 ms")
        differs = page.get_by_role("row", name="/stages/0/student/layers")
        expect(differs.locator("mark")).to_have_text(["3", "4"])
        expect(page.locator("[data-drawn=loss]")).to_be_visible()
        names = "(plot) => plot.data.map((one) => one.name)"
        assert page.locator("[data-overlay] .plot").evaluate(names) == ["large", "poor", "small"]
        page.get_by_label("Metric").select_option("validation_accuracy")
        expect(page.locator("[data-drawn=validation_accuracy]")).to_be_visible()
        latency = page.locator("#chart-latency .plot")
        drawn = latency.evaluate("(plot) => plot.data.map((one) => [one.name, one.x, one.y])")
        assert ["Pareto front", [0.6, 1.8], [76.0, 80.0]] in drawn
        page.locator("#chart-latency").get_by_text("Numbers").click()
        cheap = page.get_by_role("region", name="Quality against latency").get_by_role("row")
        assert [row.inner_text().split()[-1] for row in cheap.all()[1:]] == ["yes", "yes", "no"]
        assert_accessible(page)
        assert_fits_a_phone(page)

    def test_nobody_elses(self, service: Service, sign_in: SignIn, students: dict[str, str]) -> None:
        page = sign_in("read", owner="stranger")
        page.goto(f"{service.url}/ui/compare?ids={students['small']}")
        expect(page.get_by_text(f"There is no job or student {students['small']}.")).to_be_visible()
        expect(page.get_by_text("There is no student yet to compare.")).to_be_visible()


class TestParetoFront:
    def test_of_known_points(self) -> None:
        points = [(2.0, 0.8), (1.0, 0.7), (3.0, 0.75), (1.0, 0.6), (4.0, 0.9), (2.0, 0.8)]
        assert pareto_front(points) == [1, 0, 5, 4]
        assert pareto_front([]) == []

    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
    def test_is_what_no_other_beats(self, points: list[tuple[int, int]]) -> None:
        def beaten(at: int) -> bool:
            cost, quality = points[at]
            return any(other[0] <= cost and other[1] >= quality and other != points[at] for other in points)

        front = pareto_front(points)
        assert sorted(front) == [at for at in range(len(points)) if not beaten(at)]
        assert [points[at][0] for at in front] == sorted(points[at][0] for at in front)


def candidate(name: str, score: float, p50_ms: float | None, metric: str = "accuracy") -> Candidate:
    arm = {
        "score": score,
        "accuracy_interval": [score - 0.1, score + 0.05],
        "score_lower_bound": score - 0.09,
        "served": "fp32",
        "precisions": {"fp32": {"p50_ms": p50_ms, "bytes": 1000}},
    }
    report = {"metric": metric, "arms": {"distilled": arm}}
    return Candidate(
        id=f"job_{name}", job={"id": f"job_{name}", "name": name, "status": "succeeded"}, student=None, report=report
    )


class TestScatter:
    def test_has_points_intervals_and_the_front(self) -> None:
        named = comparison.named([candidate("a", 0.8, 2.0), candidate("b", 0.7, 1.0), candidate("c", 0.6, 3.0)])
        chart = comparison.scatter(named, cost=comparison.latency_of, x="ms", teachers=True)
        assert chart is not None
        assert [(one["name"], one["x"]) for one in chart["series"]] == [
            ("a", [2.0]),
            ("b", [1.0]),
            ("c", [3.0]),
            ("Pareto front", [1.0, 2.0]),
        ]
        bars = chart["series"][0]["trace"]["error_y"]
        assert math.isclose(bars["array"][0], 5.0)
        assert math.isclose(bars["arrayminus"][0], 10.0)
        assert chart["front"] == ["b", "a"]

    def test_leaves_out_what_is_on_another_scale_or_was_not_measured(self) -> None:
        named = comparison.named(
            [
                candidate("a", 0.8, 2.0),
                candidate("b", 0.9, None),
                candidate("c", 0.6, 3.0, "pearson"),
                candidate("d", 0.7, 4.0),
            ]
        )
        chart = comparison.scatter(named, cost=comparison.latency_of, x="ms", teachers=False)
        assert chart is not None
        assert [one["name"] for one in chart["series"]] == ["a", "d", "Pareto front"]
        assert comparison.scatter([], cost=comparison.latency_of, x="ms", teachers=False) is None


class TestTable:
    def test_marks_no_best_among_different_metrics(self) -> None:
        them = comparison.named([candidate("a", 0.8, 2.0), candidate("b", 0.9, 3.0, "pearson")])
        found = {row.name: row.cells for row in comparison.rows(them)}
        assert [cell.best for cell in found["Score (main metric)"]] == [False, False]
        assert [(cell.text, cell.detail) for cell in found["Score (main metric)"]] == [
            ("80.0 %", "70.0 % to 85.0 %"),
            ("0.9", "at least 0.81"),
        ]
        assert [cell.best for cell in found["Latency p50"]] == [True, False]

    def test_names_that_are_shared_are_told_apart(self) -> None:
        one, two = candidate("a", 0.8, 2.0), candidate("a", 0.7, 1.0)
        two = Candidate(id="job_zzzz", job=two.job, student=None, report={})
        assert [named.label for named in comparison.named([one, two])] == ["a …ob_a", "a …zzzz"]


class TestDifferences:
    def test_by_pointer_against_the_first(self) -> None:
        one: dict[str, Any] = {"name": "a", "seed": 0, "x/y": None, "stages": [{"layers": [0, 1]}]}
        two: dict[str, Any] = {"name": "b", "seed": 1, "stages": [{"layers": [0, 2]}, {"layers": 3}]}
        found = comparison.differences([one, two, None])
        assert [(row.pointer, row.values, row.differs) for row in found] == [
            ("/seed", ["0", "1", "–"], [False, True, True]),
            ("/stages/0/layers", [json.dumps([0, 1]), json.dumps([0, 2]), "–"], [False, True, True]),
            ("/stages/1/layers", ["–", "3", "–"], [False, True, False]),
        ]

    def test_wanted_ids(self) -> None:
        assert compare.wanted_ids(["a,b", " c ,a", ""]) == ["a", "b", "c"]
