"""Datasets in the browser: sending files, seeing why one is refused, looking at what is in one."""

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect

from app.dashboard import samples
from tests.dashboard.conftest import assert_accessible, assert_fits_a_phone
from tests.service import Service

GOOD = "text,label\n" + "".join(f'"row {at} with a few words",{"good" if at % 3 else "bad"}\n' for at in range(30))
BAD = "text,label\none,good\ntwo,bad,and more\n"


def upload(client: httpx2.Client, content: str, name: str = "rows.csv") -> str:
    answer = client.post("/datasets", files={"file": (name, content.encode())})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_file_becomes_a_dataset_and_its_page_comes_next(page: Page, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text(GOOD)
    page.goto(f"{service.url}/ui/datasets")

    page.get_by_text("Choose files").set_input_files(file)

    page.wait_for_url("**/ui/datasets/ds_*")
    expect(page.get_by_role("heading", level=1)).to_have_text("reviews")
    expect(page.get_by_role("table", name="Columns with their types")).to_contain_text("label")
    expect(page.get_by_text("the most frequent is good with 66.7 %")).to_be_visible()
    expect(page.get_by_role("table", name="The first 20 rows").get_by_role("row")).to_have_count(21)


def test_of_several_files_each_tells_how_it_went(page: Page, service: Service, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(GOOD)
    (tmp_path / "broken.csv").write_text(BAD)
    (tmp_path / "three.csv").write_text(GOOD)
    page.goto(f"{service.url}/ui/datasets")

    page.get_by_text("Choose files").set_input_files(
        [tmp_path / name for name in ("one.csv", "broken.csv", "three.csv")]
    )

    lines = page.get_by_role("list", name="Uploads").locator("> li")
    expect(lines.nth(0)).to_contain_text("30 rows")
    expect(lines.nth(1)).to_contain_text("refused")
    expect(lines.nth(1)).to_contain_text("line 3")
    expect(lines.nth(2)).to_contain_text("Look at three")
    expect(page.locator("#datasets")).to_contain_text("three")  # the list has come by itself
    assert_accessible(page)


def test_an_upload_shows_how_far_it_is_and_can_be_cancelled(page: Page, service: Service, tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(GOOD + '"a row of a long file",good\n' * 20_000)
    page.goto(f"{service.url}/ui/datasets")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    page.get_by_text("Choose files").set_input_files(tmp_path / "long.csv")
    expect(page.get_by_text("sending, ")).to_have_text(re.compile(r"sending, \d+ %"))

    page.get_by_role("button", name="Cancel long.csv").click()

    expect(page.get_by_role("list", name="Uploads")).to_contain_text("cancelled")
    with service.client("read") as client:
        assert "long" not in {one["name"] for one in client.get("/datasets").json()["data"]}


def test_a_dataset_leads_to_a_job_and_can_be_deleted(page: Page, service: Service) -> None:
    with service.client("jobs", "read") as client:
        dataset = upload(client, GOOD, "short-lived.csv")
        page.goto(f"{service.url}/ui/datasets/{dataset}")
        assert_accessible(page)
        assert_fits_a_phone(page)
        expect(page.get_by_role("link", name="New job with this dataset")).to_have_attribute(
            "href", f"/ui/jobs/new?dataset={dataset}"
        )

        page.get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()

        page.wait_for_url("**/ui/datasets")
        assert client.get(f"/datasets/{dataset}").status_code == 404


def test_a_key_that_may_only_read_is_offered_nothing_else(service: Service) -> None:
    with service.client("jobs") as client:
        dataset = upload(client, GOOD)
    with service.client("read") as client:
        one, every = client.get(f"/ui/datasets/{dataset}").text, client.get("/ui/datasets").text
    assert "First rows" in one
    assert "data-call" not in one
    assert dataset in every
    assert "data-upload" not in every


def test_somebody_elses_dataset_is_not_there(service: Service) -> None:
    with service.client("jobs", owner="somebody") as client:
        dataset = upload(client, GOOD)
    with service.client("read", owner="another") as client:
        answer = client.get(f"/ui/datasets/{dataset}")
    assert answer.status_code == 404
    assert "<h1>Not here</h1>" in answer.text


def test_what_is_in_the_rows_is_shown_as_text(service: Service) -> None:
    row = {"text": "<script>alert(1)</script>", "label": "</script><img src=x onerror=alert(1)>"}
    with service.client("jobs", "read") as client:
        dataset = upload(client, "\n".join([json.dumps(row)] * 4), "rows.jsonl")
        shown = client.get(f"/ui/datasets/{dataset}").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<script>alert" not in shown
    assert "<img src=x" not in shown


# --- what a sample says -----------------------------------------------------------------------------------------------

COLUMNS = [{"name": "text", "type": "string", "distinct": 1000}, {"name": "label", "type": "string", "distinct": 3}]


def test_labels_are_counted_and_texts_measured() -> None:
    texts = [" ".join(["word"] * (at % 40 + 3)) for at in range(90)]
    labels = ["good" if at % 4 else "bad" for at in range(90)]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)] + [
        {"text": "unlabelled", "label": None}
    ]

    (balance,) = samples.balances(COLUMNS, rows)
    words, characters = samples.lengths(COLUMNS, rows)

    assert (balance.column, balance.empty, balance.total) == ("label", 1, 90)
    assert dict(balance.counts) == {label: labels.count(label) for label in set(labels)}
    assert (words.column, words.unit, characters.unit) == ("text", "words", "characters")
    assert words.longest == max(len(text.split()) for text in texts)
    assert sum(one.texts for one in characters.bins) == 91
    assert all(one.high < other.low for one, other in zip(words.bins, words.bins[1:], strict=False))


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.95, 10)])
def test_a_quantile_is_a_length_that_so_many_do_not_exceed(share: float, expected: int) -> None:
    rows = [{"text": " ".join(["word"] * count)} for count in range(1, 11)]
    words = samples.lengths([{"name": "text", "type": "string", "distinct": 1000}], rows)[0]
    assert {0.5: words.median, 0.95: words.p95}[share] == expected


def test_lists_are_counted_by_what_is_in_them() -> None:
    rows: list[dict[str, Any]] = [{"tags": ["O", "B-person"]}, {"tags": ["O"]}, {"tags": []}]
    (balance,) = samples.balances([{"name": "tags", "type": "list of strings"}], rows)
    assert balance.counts == (("O", 2), ("B-person", 1))


def test_a_column_of_names_is_no_column_of_labels() -> None:
    rows = [{"name": f"name {at}"} for at in range(40)]
    assert samples.balances([{"name": "name", "type": "string", "distinct": 40}], rows) == []
