"""How answers look in a notebook and at a prompt."""

from html.parser import HTMLParser
from typing import Any

import pytest

from limbeck.objects import Dataset, Deployment, Job, Page, Report, Student, read
from limbeck.predictions import Label, Predictions, Trial
from tests.client.stand_ins import REPORT

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"
AT = "2026-11-24T12:30:00Z"
JOB = {"id": "job_1", "name": EVIL, "status": "running", "progress": 0.25, "created_at": AT}
ANSWERS = [
    read(Job, JOB),
    read(Student, {"id": "st_1", "name": EVIL, "job_id": "job_1", "hash": "0", "created_at": AT, "labels": [EVIL]}),
    read(
        Dataset,
        {
            "id": "ds_1",
            "name": EVIL,
            "status": "ready",
            "rows": 2,
            "bytes": 9,
            "columns": [{"name": EVIL}],
            "created_at": AT,
        },
    ),
    read(
        Deployment,
        {"id": "dep_1", "name": EVIL, "student": "st_1", "version": 1, "created_at": AT, "updated_at": AT},
    ),
    Page(data=[read(Job, JOB), read(Job, JOB)], has_more=True),
    Page(data=[{EVIL: EVIL}]),
    Report({**REPORT, "verdict": EVIL, "arms": {EVIL: {EVIL: EVIL, "accuracy": 0.5}}}),
    Predictions(data=[[Label(EVIL, 0.5)], []]),
    Trial(student=[[Label(EVIL, 0.5)]], teacher=[[Label(EVIL, 0.5)]]),
]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_what_the_service_says_is_never_markup(answer: Any) -> None:
    found = _Tags()
    found.feed(answer._repr_html_())
    assert found.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p", "progress"}
    assert found.attributes <= {"value", "max"}
    assert EVIL in found.text


def test_a_repr_says_what_is_not_by_default() -> None:
    assert repr(read(Job, {**JOB, "name": "tweets"})).startswith(
        "Job(id='job_1', name='tweets', status='running', created_at=datetime.datetime(2026, 11, 24"
    )
    assert "progress=0.25" in repr(ANSWERS[0])
    assert "eta_seconds" not in repr(ANSWERS[0])
    assert "raw" not in repr(ANSWERS[0])


def test_a_page_has_a_line_for_each() -> None:
    lines = repr(ANSWERS[4]).splitlines()
    assert lines[0] == "Page of 2, more follow:"
    assert [line.startswith("  Job(id='job_1'") for line in lines[1:]] == [True, True]
    assert repr(Page(data=[])) == "Page of 0"


def test_a_report_is_a_dictionary_that_shows_its_arms() -> None:
    report = Report(REPORT)
    assert report == REPORT
    assert REPORT["verdict"] in repr(report)
    assert "'arm': 'distilled', 'accuracy': 0.745" in repr(report)
    assert "<td>0.745</td>" in report._repr_html_()
