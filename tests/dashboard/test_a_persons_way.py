"""The whole way by hand, with an API and a worker as processes of their own: from a file to a student that answers,
and back to the one before.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from limbeck import Client
from models.settings import Settings
from tests.dashboard.conftest import assert_accessible, assert_fits_a_phone
from tests.factories import tiny_rows, tiny_teacher
from tests.processes import processes

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    tiny_teacher(settings.models_folder / "tiny")
    with processes(settings) as found:
        yield found


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    found = context.new_page()
    link = client.sign_in_link()
    found.goto(client.url + link.path)
    yield found
    context.close()


def test_upload_train_read_promote_predict_roll_back(page: Page, client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "tweets.csv"
    with rows.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*tiny_rows(600), strict=True)])

    # A file.
    page.get_by_role("link", name="Datasets").click()
    page.locator("[data-files]").set_input_files(rows)
    page.wait_for_url(re.compile("/ui/datasets/ds_"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("tweets")
    students = []
    for name, seed in (("first", 1), ("second", 2)):
        students.append(train(page, client, name, seed))

    # The second one takes the place of the first, from its own page.
    page.goto(f"{client.url}/ui/students/{students[1]}")
    page.locator("[data-deploy] [name=name]").fill("tiny")
    page.get_by_role("button", name="Deploy", exact=True).click()
    page.wait_for_url("**/ui/deployments/tiny")
    expect(page.locator("#pointer")).to_contain_text("second")
    page.locator("[data-try] [name=input]").fill("a great and lovely day")
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_text("there and back")).to_be_visible()

    # And back.
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.locator("#pointer")).to_contain_text("first")
    assert client.deployments.get("tiny").student == students[0]
    assert client.predict("tiny", "an awful broken phone").student is not None


def train(page: Page, client: Client, name: str, seed: int) -> str:
    """A job by the form, watched until it has ended; the id of its student, whose card was read."""
    page.goto(f"{client.url}/ui/datasets")
    page.get_by_role("link", name="New job with tweets").first.click()
    document = page.get_by_label("The job as JSON")
    expect(document).to_have_value(re.compile("package:"))  # the form has begun
    page.locator("[data-at='/teachers/0/model']").first.fill("file:tiny")
    expect(document).to_have_value(re.compile("file:tiny"))
    spec: dict[str, Any] = json.loads(document.input_value())
    spec |= {
        "name": name,
        "seed": seed,
        "student": {"kind": "from_teacher", "layers": 1},
        "schedule": {"epochs": 4, "learning_rate": 3e-3},
        "promote": {"deployment": "tiny", "gate": {"max_drop": 0.9}} if name == "first" else None,
    }
    spec["task"]["max_length"] = 32
    spec["teachers"][0]["fine_tune"] = {"epochs": 4, "learning_rate": 3e-3}
    document.fill(json.dumps({key: value for key, value in spec.items() if value is not None}))
    expect(page.get_by_text("This job can run.")).to_be_visible()
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url(re.compile("/ui/jobs/job_"))
    job_id = page.url.rpartition("/")[2]
    expect(page.locator("[data-status=succeeded]").first).to_be_visible(timeout=240_000)  # nobody reloads it
    expect(page.locator("figure .plot svg").first).to_be_visible()
    assert_accessible(page)
    job = client.jobs.get(job_id)
    assert job.student_id is not None
    page.goto(f"{client.url}/ui/students/{job.student_id}")
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    verdict = client.students.report(job.student_id)["verdict"]
    expect(page.locator(".verdict")).to_have_text(verdict)
    assert_fits_a_phone(page)
    page.set_viewport_size({"width": 1280, "height": 860})
    return job.student_id
