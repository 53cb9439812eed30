"""A student beside its teacher, deployed, tried, rolled back: what a person does once a job has ended."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect

from app.dashboard.students import arms, cascade_chart, figures, quality_chart
from models.artifacts import write_manifest
from models.tables import Job, Student, new_id
from tests.dashboard.conftest import SignIn, assert_accessible, assert_fits_a_phone
from tests.factories import LABELS
from tests.service import Service
from tests.students import tiny_student

REPORT: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "example-report" / "report.json").read_text("utf-8")
)
CARD = "---\nlicense: mit\n---\n# The card\n\n<script>alert(1)</script>\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n"
DISAGREEMENTS = [
    {
        "input": "it was <b>fine</b>",
        "truth": "positive",
        "teacher": "positive",
        "student": "negative",
        "right": "teacher",
    },
    {"input": "a mess", "truth": "negative", "teacher": "positive", "student": "negative", "right": "student"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("students") / "one"
    tiny_student(found)
    (found / "README.md").write_text(CARD, "utf-8")
    write_manifest(found, kind="student", task="text-classification", labels=LABELS, max_length=32)
    return found


def publish(service: Service, folder: Path, name: str, *, gate: bool = True, teacher: bool = False) -> str:
    """A student with the example report; its id."""
    id_, job = new_id("st"), new_id("job")
    store = service.app.state.store
    manifest = store.publish(folder, f"students/{id_}")
    exported = f"exports/{id_}" if teacher else None
    if exported is not None:
        store.publish(folder, exported)
    report = {**REPORT, "gate": {**REPORT["gate"], "passed": gate}}
    if not gate:
        report["gate"]["checks"] = [{**REPORT["gate"]["checks"][0], "passed": False, "limit": 0.01}]
    resolved = {"seed": 0, "teachers": [{"kind": "local", "model": "file:large"}], "promote": None}
    with service.database.writing() as session:
        session.add(
            Job(
                id=job,
                owner="default",
                name=name,
                status="succeeded",
                device="cpu",
                student_id=id_,
                spec={},
                resolved_spec=resolved,
            )
        )
        session.add(
            Student(
                id=id_,
                owner="default",
                name=name,
                job_id=job,
                hash=manifest.student_hash,
                artifact=f"students/{id_}",
                teacher_artifact=exported,
                manifest=manifest.model_dump(mode="json"),
                report=report,
            )
        )
    return id_


@pytest.fixture(scope="module")
def student(service: Service, folder: Path) -> str:
    return publish(service, folder, "tweet-sentiment", teacher=True)


@pytest.fixture
def client(service: Service) -> Iterator[httpx2.Client]:
    with service.client("admin") as found:
        yield found


class TestFigures:
    """From a report to what is shown."""

    def test_of_a_whole_report(self) -> None:
        found = figures(REPORT)
        assert found["metric"] == "accuracy"
        assert found["smaller"] == pytest.approx(22713986 / 6967682)
        assert found["served"] == "int8"
        assert found["bytes"] == REPORT["arms"]["distilled"]["precisions"]["int8"]["bytes"]

    def test_of_a_report_with_nothing_in_it(self) -> None:
        assert set(figures({}).values()) == {None, ""}
        assert not list(arms({}))
        assert quality_chart({}) is None
        assert cascade_chart({}) is None

    def test_an_arm_without_an_interval_is_a_point(self) -> None:
        chart = quality_chart({"metric": "f1", "arms": {"distilled": {"score": 0.5}}})
        assert chart is not None
        assert chart["series"][0]["trace"]["error_x"]["array"] == [0.0]

    def test_the_cascade_has_a_point_for_every_threshold(self) -> None:
        chart = cascade_chart(REPORT)
        assert chart is not None
        assert len(chart["series"][0]["x"]) == len(REPORT["cascade"]["thresholds"])


def test_the_list(page: Page, service: Service, student: str) -> None:
    page.goto(f"{service.url}/ui/students")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="tweet-sentiment"))
    expect(row).to_contain_text("79.0 %")
    expect(row).to_contain_text("−3.1")
    expect(row).to_contain_text("holds")
    row.get_by_role("checkbox").check()
    page.get_by_role("button", name="Compare the chosen").click()
    page.wait_for_url(f"**/ui/compare?ids={student}")
    page.goto(f"{service.url}/ui/students")
    assert_accessible(page)
    assert_fits_a_phone(page)


def test_the_card(page: Page, service: Service, student: str) -> None:
    page.goto(f"{service.url}/ui/students/{student}")
    expect(page.get_by_role("heading", level=1)).to_have_text("tweet-sentiment")
    expect(page.locator(".verdict")).to_contain_text("79.0 % of the test rows")
    expect(page.get_by_text("no proof that distillation helped")).to_be_visible()
    expect(page.locator("figure .plot svg").first).to_be_visible()
    page.get_by_text("Model card").click()
    expect(page.get_by_role("heading", name="The card")).to_be_visible()
    expect(page.get_by_text("<script>alert(1)</script>")).to_be_visible()  # as text
    page.get_by_text("By slice").click()
    expect(page.get_by_text("text length: up to 22 tokens")).to_be_visible()
    page.get_by_role("button", name="Verify every file").click()
    expect(page.get_by_text("files are as they were published")).to_be_visible()
    assert_accessible(page)
    assert_fits_a_phone(page)


def test_try_it_beside_its_teacher(page: Page, service: Service, student: str) -> None:
    page.goto(f"{service.url}/ui/students/{student}")
    page.locator("[data-try] [name=text]").fill("good film")
    page.get_by_role("button", name="Ask both").click()
    for name in ("Student", "Teacher"):
        card = page.locator("[data-answers] > div").filter(has=page.get_by_role("heading", name=name))
        expect(card.get_by_role("listitem")).to_have_count(3)
        expect(card).to_contain_text("ms")


def test_disagreements(page: Page, service: Service, folder: Path, tmp_path: Path) -> None:
    with_rows = tmp_path / "with-rows"
    shutil.copytree(folder, with_rows)
    (with_rows / "disagreements.json").write_text(json.dumps({"format": 1, "rows": DISAGREEMENTS}), "utf-8")
    (with_rows / "manifest.json").unlink()
    write_manifest(with_rows, kind="student", task="text-classification", labels=LABELS, max_length=32)
    page.goto(f"{service.url}/ui/students/{publish(service, with_rows, 'rows')}")
    page.get_by_text("Rows on which student and teacher differ").first.click()
    expect(page.get_by_text("it was <b>fine</b>")).to_be_visible()
    page.get_by_label("Who was right").select_option("student")
    expect(page.get_by_text("a mess")).to_be_visible()
    expect(page.get_by_text("it was <b>fine</b>")).to_have_count(0)


def test_deploy_promote_predict_and_roll_back(
    page: Page, service: Service, client: httpx2.Client, student: str, folder: Path
) -> None:
    second = publish(service, folder, "tweets-again")
    # Deployed from its own page.
    page.goto(f"{service.url}/ui/students/{student}")
    page.get_by_label("Name").fill("tweets")
    page.get_by_role("button", name="Deploy", exact=True).click()
    page.wait_for_url("**/ui/deployments/tweets")
    expect(page.get_by_role("link", name="tweet-sentiment").first).to_be_visible()
    # Tried.
    page.locator("[data-try] [name=input]").fill("good film")
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_text("there and back")).to_be_visible()
    # A canary, and its promotion.
    page.get_by_label("Try another beside it").select_option("canary")
    page.get_by_label("The other student").select_option(second)
    page.get_by_role("button", name="Change", exact=True).click()
    expect(page.get_by_text("answers 10 % of the calls as a canary")).to_be_visible()
    page.get_by_role("button", name="Promote it").click()
    page.get_by_role("button", name="Promote", exact=True).click()
    expect(page.locator("#pointer")).to_contain_text("tweets-again")
    assert client.get("/deployments/tweets").json()["student"] == second
    assert_accessible(page)
    # And back.
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.locator("#pointer")).to_contain_text("tweet-sentiment")
    assert client.get("/deployments/tweets").json()["student"] == student
    expect(page.locator("#history").get_by_text("rollback")).to_be_visible()
    assert_fits_a_phone(page)


def test_a_missed_gate_asks_for_a_reason(page: Page, service: Service, client: httpx2.Client, folder: Path) -> None:
    weak = publish(service, folder, "weak", gate=False)
    body = {"student": publish(service, folder, "strong"), "gate": {"max_drop": 0.06}}
    assert client.put("/deployments/strict", json=body).status_code == 201
    client.put("/deployments/strict", json={**body, "gate": {"max_drop": 0.06, "min_metric": 0.79}, "override": "test"})
    page.goto(f"{service.url}/ui/students/{weak}")
    page.get_by_label("Name").fill("strict")
    page.get_by_role("button", name="Deploy", exact=True).click()
    reason = page.get_by_label("Deploy it all the same, because")
    expect(reason).to_be_visible()
    reason.fill("it is what we have")
    page.get_by_role("button", name="Deploy", exact=True).click()
    page.wait_for_url("**/ui/deployments/strict")
    expect(page.locator("#history")).to_contain_text("it is what we have")


def test_a_key_that_may_only_read_sees_no_buttons(sign_in: SignIn, service: Service, student: str) -> None:
    page = sign_in("read")
    page.goto(f"{service.url}/ui/students/{student}")
    expect(page.get_by_role("heading", level=1)).to_have_text("tweet-sentiment")
    for name in ("Deploy", "Delete", "Ask both"):
        expect(page.get_by_role("button", name=name, exact=True)).to_have_count(0)


def test_live_figures(page: Page, service: Service, client: httpx2.Client, student: str) -> None:
    assert client.put("/deployments/busy", json={"student": student}).status_code == 201
    page.goto(f"{service.url}/ui/deployments/busy")
    for _ in range(10):
        assert client.post("/predict/busy", json={"inputs": "good"}).status_code == 200
    row = page.locator("#traffic").get_by_role("row").filter(has_text="stable")
    expect(row.get_by_role("cell").nth(1)).to_have_text("10")
    expect(page.locator("[data-live-chart] svg").first).to_be_visible()
    page.goto(f"{service.url}/ui/")
    expect(page.locator("#deployed").get_by_role("listitem").filter(has_text="busy")).to_contain_text("10 calls")


def test_what_it_saves(page: Page, service: Service, student: str) -> None:
    page.goto(f"{service.url}/ui/students/{student}")
    page.get_by_label("Calls a month").fill("2000000")
    page.get_by_role("button", name="Reckon").click()
    expect(page.locator("[data-reckoned]")).to_contain_text("4,000")  # what the teacher costs


def test_kept_calls_become_a_dataset(page: Page, service: Service, client: httpx2.Client, student: str) -> None:
    body = {"student": student, "capture": {"sample": 1.0}}
    assert client.put("/deployments/kept", json=body).status_code == 201
    assert client.post("/predict/kept", json={"inputs": "a <i>good</i> film"}).status_code == 200
    page.goto(f"{service.url}/ui/deployments/kept")
    row = page.locator("#captures").get_by_role("row").filter(has_text="a <i>good</i> film")
    expect(row).to_be_visible()
    row.get_by_role("button", name="positive").click()
    expect(row.get_by_role("button")).to_have_count(0)
    page.get_by_role("button", name="Make one with the feedback").click()
    page.wait_for_url("**/ui/datasets")
    expect(page.get_by_role("link", name="kept feedback", exact=True)).to_be_visible()


def test_a_teacher_is_uploaded_and_deleted(page: Page, service: Service, folder: Path) -> None:
    page.goto(f"{service.url}/ui/teachers")
    form = page.locator("[data-checkpoint]")
    form.locator("[name=files]").set_input_files([folder / name for name in ("config.json", "tokenizer.json")])
    form.get_by_role("button", name="Upload").click()
    expect(form.get_by_role("alert")).to_contain_text("model.safetensors")
    names = ("config.json", "tokenizer.json", "model.safetensors")
    form.locator("[name=files]").set_input_files([folder / name for name in names])
    form.locator("[name=name]").fill("large")
    form.get_by_role("button", name="Upload").click()
    row = page.get_by_role("row").filter(has_text="large")
    expect(row).to_contain_text("teacher:tc_")
    assert_accessible(page)
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    assert_fits_a_phone(page)
