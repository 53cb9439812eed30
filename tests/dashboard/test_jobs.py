"""What a person does with jobs: finds one, watches it, stops it, runs it again."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update

from app.dashboard import jobs
from models.tables import Job
from tests.dashboard import rows
from tests.dashboard.conftest import SignIn, assert_accessible, assert_fits_a_phone
from tests.service import Service


def change(service: Service, job: str, **columns: Any) -> None:
    with service.database.writing() as session:
        session.execute(update(Job).where(Job.id == job).values(version=Job.version + 1, **columns))


@pytest.fixture(scope="module")
def dataset(service: Service) -> str:
    return rows.dataset(service.database)


@pytest.fixture
def running(service: Service, dataset: str) -> str:
    """In its third phase, with a loss of two arms."""
    job = rows.job(
        service.database, dataset, status="running", phase="distil", progress=0.4, eta_seconds=300.0, attempt=1
    )
    for arm in ("distilled", "control"):
        rows.curve(service.database, job, "loss", range(1, 100), arm=arm)
    rows.happened(service.database, job, "started", "Started.")
    rows.happened(service.database, job, "phase", "Phase preflight began.")
    return job


class TestList:
    def test_filters_pages_and_chooses(self, service: Service, sign_in: SignIn) -> None:
        data = rows.dataset(service.database, "lister")
        for number in range(30):
            rows.job(service.database, data, owner="lister", name=f"run-{number % 2}", status="succeeded")
        rows.job(
            service.database,
            data,
            owner="lister",
            name="broken",
            status="failed",
            error={
                "code": "diverged",
                "message": "The loss was no longer finite.",
                "hint": "Lower it.",
                "pointer": None,
            },
        )
        page = sign_in("read", "jobs", owner="lister")
        page.goto(f"{service.url}/ui/jobs")
        expect(page.locator("tbody tr")).to_have_count(25)
        page.get_by_role("link", name="Older").click()
        expect(page.locator("tbody tr")).to_have_count(6)
        page.get_by_role("link", name="Newest").click()
        page.get_by_label("failed", exact=True).check()
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("tbody tr")).to_have_count(1)
        expect(page.get_by_text("The loss was no longer finite.")).to_be_visible()
        page.get_by_role("link", name="Show all").click()
        page.get_by_label("Name").fill("run-1")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("tbody tr")).to_have_count(15)
        boxes = page.get_by_role("checkbox", name=re.compile("to compare"))
        chosen = [boxes.nth(place).get_attribute("value") for place in (0, 2)]
        boxes.nth(0).check()
        boxes.nth(2).check()
        expect(page.get_by_text("2 chosen.")).to_be_visible()
        # The list lives: what is new appears, and what was chosen stays so.
        page.get_by_role("button", name="Compare chosen").focus()
        rows.job(service.database, data, owner="lister", name="run-1", status="succeeded")
        expect(page.locator("tbody tr")).to_have_count(16)
        assert [box.get_attribute("value") for box in boxes.all() if box.is_checked()] == chosen
        page.get_by_role("button", name="Compare chosen").click()
        expect(page.get_by_role("heading", name="Figures")).to_be_visible()
        assert all(str(id_) in page.url for id_ in chosen)

    def test_nobody_elses_nothing_for_readers_and_accessible(
        self, service: Service, sign_in: SignIn, running: str
    ) -> None:
        stranger = sign_in("read", owner="stranger")
        stranger.goto(f"{service.url}/ui/jobs")
        expect(stranger.get_by_text("There is no job yet.")).to_be_visible()
        expect(stranger.get_by_role("link", name="New job")).to_have_count(0)
        answer = stranger.goto(f"{service.url}/ui/jobs/{running}")
        assert answer is not None
        assert answer.status == 404
        reader = sign_in("read")
        reader.goto(f"{service.url}/ui/jobs/{running}")
        expect(reader.get_by_role("heading", name="Status")).to_be_visible()
        expect(reader.locator("#verbs").locator("a, button")).to_have_count(0)
        page = sign_in("admin")
        page.goto(f"{service.url}/ui/jobs")
        assert_accessible(page)
        assert_fits_a_phone(page)


class TestWatching:
    def test_lives(self, service: Service, page: Page, running: str) -> None:
        page.goto(f"{service.url}/ui/jobs/{running}")
        expect(page.locator("[aria-current=step]")).to_contain_text("distil")
        expect(page.get_by_text("40 % done, about 5 min 0 s left.")).to_be_visible()
        change(service, running, phase="evaluate", progress=0.8, eta_seconds=60.0)
        expect(page.locator("[aria-current=step]")).to_contain_text("evaluate")
        expect(page.get_by_text("80 % done, about 1 min 0 s left.")).to_be_visible()

    def test_curves_go_on_and_stay_zoomed(self, service: Service, page: Page, running: str) -> None:
        page.goto(f"{service.url}/ui/jobs/{running}")
        expect(page.locator("[data-drawn=loss]")).to_be_visible()
        plot = page.locator(".plot .nsewdrag")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=4)
        page.mouse.up()
        zoomed = "document.querySelector('.plot').layout.xaxis.range"
        page.wait_for_function(f"!document.querySelector('.plot').layout.xaxis.autorange && {zoomed}[0] > 10")
        before = page.evaluate(zoomed)
        rows.curve(service.database, running, "loss", range(100, 150))
        rows.curve(service.database, running, "loss", range(1, 50), stage=1)
        rows.curve(service.database, running, "validation_accuracy", range(50, 150, 50))
        change(service, running, progress=0.9)
        # A quality that appears is shown beside the loss, and stages lie one after another.
        expect(page.locator("[data-drawn='loss,validation_accuracy']")).to_be_visible()
        assert page.evaluate(zoomed) == before
        names = page.evaluate("document.querySelector('.plot').data.map((one) => one.name)")
        assert names == ["control, stage 1", "distilled, stage 1", "distilled, stage 2"]
        assert page.evaluate("document.querySelector('.plot').data[2].x[0]") == 150
        page.get_by_text("Numbers of loss").click()
        expect(page.get_by_role("region", name="Summary of each series").get_by_role("row")).to_have_count(4)
        page.get_by_label("loss", exact=True).uncheck()
        expect(page.locator("[data-drawn=validation_accuracy]")).to_be_visible()
        assert page.url.endswith("?metrics=validation_accuracy")
        assert_accessible(page)
        assert_fits_a_phone(page)

    def test_events(self, service: Service, page: Page, running: str) -> None:
        page.goto(f"{service.url}/ui/jobs/{running}")
        log = page.get_by_role("log")
        expect(log.locator("li")).to_have_count(2)
        for number in range(40):
            rows.happened(service.database, running, "note", f"Something, number {number}.")
        expect(log.locator("li")).to_have_count(42)
        log.scroll_into_view_if_needed()
        expect(log.locator("li").last).to_be_in_viewport()
        # Whoever scrolls up reads, and is not pulled away.
        log.evaluate("(log) => { log.scrollTop = 0; }")
        rows.happened(service.database, running, "warning", "Look at this.")
        expect(page.get_by_role("button", name="Newest events")).to_be_visible()
        assert log.evaluate("(log) => log.scrollTop") == 0
        page.get_by_role("button", name="Newest events").click()
        expect(log.get_by_text("Look at this.")).to_be_in_viewport()
        page.get_by_label("Kind").select_option("warning")
        expect(page.get_by_text("1 of 43 events")).to_be_visible()
        page.get_by_label("Kind").select_option("")
        page.get_by_label("Text").fill("PREFLIGHT")
        expect(log.locator("li:visible")).to_have_count(1)


class TestVerbs:
    def test_pause_resume_cancel_delete(self, service: Service, page: Page, dataset: str) -> None:
        job = rows.job(service.database, dataset, status="queued", waiting_reason="waiting for a free CPU worker")
        page.goto(f"{service.url}/ui/jobs/{job}")
        expect(page.get_by_text("It waits: waiting for a free CPU worker.")).to_be_visible()
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_text("Paused at 0 %.")).to_be_visible()
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        page.get_by_role("button", name="Cancel the job").click()
        page.get_by_role("dialog").get_by_role("button", name="Leave it").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        page.get_by_role("button", name="Cancel the job").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
        expect(page.locator("[data-state=cancelled]")).to_be_visible()
        expect(page.get_by_role("button", name="Cancel the job")).to_have_count(0)
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        page.wait_for_url("**/ui/jobs")
        with service.database.reading() as session:
            assert session.get(Job, job) is None

    def test_why_it_failed_and_run_again(self, service: Service, page: Page, dataset: str) -> None:
        error = {
            "code": "diverged",
            "message": "The loss was no longer finite.",
            "hint": "A lower learning rate is the cure.",
            "pointer": "/schedule/learning_rate",
        }
        job = rows.job(service.database, dataset, status="failed", phase="distil", attempt=1, error=error)
        page.goto(f"{service.url}/ui/jobs/{job}")
        expect(page.get_by_text("A lower learning rate is the cure.")).to_be_visible()
        expect(page.get_by_text("/schedule/learning_rate")).to_be_visible()
        expect(page.locator("[data-step=stopped]")).to_contain_text("distil failed here")
        changes = page.get_by_role("link", name="Run again with changes")
        expect(changes).to_have_attribute("href", f"/ui/jobs/new?from={job}")
        page.get_by_role("button", name="Run again").click()
        page.wait_for_url(lambda url: "/ui/jobs/job_" in url and job not in url)
        expect(page.get_by_role("link", name=job)).to_be_visible()

    def test_what_came_of_it(self, service: Service, page: Page, dataset: str) -> None:
        job = rows.job(service.database, dataset, status="succeeded", phase="publish", estimates=_ESTIMATES)
        student = rows.student(service.database, job, score=0.79, p50_ms=1.8, size=7_000_000)
        change(service, job, student_id=student)
        page.goto(f"{service.url}/ui/jobs/{job}")
        expect(page.get_by_role("link", name="See the student")).to_have_attribute("href", f"/ui/students/{student}")
        expect(page.get_by_role("link", name="Download bundle")).to_have_attribute("href", f"/jobs/{job}/bundle")
        expect(page.get_by_role("row", name="Student’s parameters 6,198,912 6,967,682")).to_be_visible()
        expect(page.get_by_role("listitem").filter(has_text="distil")).to_contain_text("done in 18 min 31 s")
        page.get_by_text("As a curl command").click()
        expect(page.get_by_text(f"curl -X POST {service.url}/jobs")).to_be_visible()


_ESTIMATES = {
    "parameters": {"teacher": 22713216, "student": 6198912, "ratio": 3.66},
    "layers": {"teacher": 6, "student": 2},
}


class TestPure:
    @pytest.mark.parametrize(
        ("status", "verbs"),
        [
            ("queued", {"cancel", "pause", "rerun", "change"}),
            ("running", {"cancel", "pause", "rerun", "change"}),
            ("pausing", {"cancel", "resume", "rerun", "change"}),
            ("paused", {"cancel", "resume", "rerun", "change"}),
            ("cancelling", {"rerun", "change"}),
            ("failed", {"rerun", "change", "delete"}),
            ("succeeded", {"rerun", "change", "delete", "bundle"}),
        ],
    )
    def test_legal(self, status: str, verbs: set[str]) -> None:
        assert jobs.legal(status, has_student=True) == verbs
        assert jobs.legal(status, has_student=False) == verbs - {"bundle"}

    def test_steps(self) -> None:
        def states(status: str, phase: str | None) -> list[str]:
            return [step.state for step in jobs.steps({"status": status, "phase": phase})]

        assert states("queued", None) == ["ahead"] * 6
        assert states("running", "teach") == ["done", "current", *["ahead"] * 4]
        assert states("failed", "preflight") == ["stopped", *["ahead"] * 5]
        assert states("succeeded", "publish") == ["done"] * 6

    def test_took(self) -> None:
        begun = datetime(2026, 1, 1, tzinfo=UTC)
        ended = (begun + timedelta(minutes=2)).isoformat()
        assert jobs.took({"started_at": begun.isoformat(), "finished_at": ended}) == 120
        assert jobs.took({"started_at": begun.isoformat(), "finished_at": None}) is None

    def test_method(self) -> None:
        objectives = [{"kind": "soft_targets"}, {"kind": "hidden_states"}]
        resolved = {"stages": [{"phases": [{"objectives": objectives}]}]}
        assert jobs.method_of({"spec": {"method": {"preset": "minilm"}}, "resolved_spec": resolved}) == "minilm"
        assert jobs.method_of({"spec": {}, "resolved_spec": resolved}) == "hinton"
        assert (
            jobs.method_of({"spec": {"objectives": objectives}, "resolved_spec": resolved})
            == "soft targets + hidden states"
        )
        stages = {
            "spec": {"stages": [{"method": "hinton"}, {"method": "tinybert"}]},
            "resolved_spec": {"stages": [{}, {}]},
        }
        assert jobs.method_of(stages) == "hinton → tinybert"
