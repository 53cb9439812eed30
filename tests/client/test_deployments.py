"""What happens to the calls of a deployment, and what came of a student: by hand and at the command line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck import ApiError, Client
from limbeck.cli.deployments import show_traffic
from limbeck.cli.students import said
from limbeck.objects import DeploymentTraffic, read
from limbeck.predictions import Predictions
from models.artifacts import write_manifest
from tests.client.conftest import Cli, publish
from tests.client.stand_ins import Service
from tests.factories import LABELS

NAME = "calls"
TEXT = "what a lovely day"
ROWS = [
    {"input": f"text {number}", "truth": truth, "teacher": {"label": "a", "score": 0.9}, "student": {"label": "b"}}
    for number, truth in enumerate([{"label": "a"}, {"label": "b"}, None])
]


@pytest.fixture
def other(service: Service, student_folder: Path) -> str:
    """Another student with the same answers; its id."""
    return publish(service, student_folder)


@pytest.fixture
def captured(client: Client, student: str) -> Iterator[Predictions]:
    """A call of two texts that the deployment `NAME` kept, which is gone after the test."""
    client.deployments.put(NAME, student, capture={"sample": 1.0})
    yield client.predict(NAME, [TEXT, "and a sad one"])
    client.deployments.delete(NAME)


@pytest.fixture
def deployed(client: Client) -> Iterator[str]:
    """The name of a deployment that a test makes; it is gone afterwards."""
    yield "made-here"
    client.deployments.delete("made-here")


class TestPut:
    def test_every_part(self, client: Client, student: str, other: str, deployed: str) -> None:
        made = client.deployments.put(
            deployed,
            student,
            canary={"student": other, "fraction": 0.25},
            shadow={"student": other},
            fallback={"to": other, "threshold": 0.9},
            auto={},
            capture={"sample": 0.5},
        )
        assert made.canary == {"student": other, "fraction": 0.25}
        assert made.shadow is not None
        assert made.fallback is not None
        assert made.auto is not None
        assert made.capture is not None
        assert (made.shadow["student"], made.fallback["threshold"]) == (other, 0.9)
        assert (made.auto["min_inputs"], made.capture["sample"]) == (1000, 0.5)
        assert client.deployments.put(deployed, student).canary is None
        newest = client.deployments.history(deployed)[0]
        assert (newest.verb, newest.traffic.get("canary")) == ("put", None)

    def test_a_gate_and_why_it_does_not_matter(self, client: Client, student: str, deployed: str) -> None:
        with pytest.raises(ApiError) as caught:
            client.deployments.put(deployed, student, gate={"min_agreement": 0.99})
        assert caught.value.status in {409, 422}
        made = client.deployments.put(deployed, student, gate={"min_agreement": 0.99}, override="a trial")
        assert made.gate is not None
        assert made.gate["min_agreement"] == 0.99
        assert client.deployments.history(deployed)[0].verb == "override"

    def test_options_are_the_document(self, cli: Cli, student: str, other: str, deployed: str, tmp_path: Path) -> None:
        options = ("--canary", other, "--fraction", 0.1, "--shadow", other, "--auto", "--override", "a trial")
        fallback = ("--fallback", other, "--threshold", 0.8)
        pairs = ("--gate", "max_drop=0.04", "--capture", "sample=0.5", "--capture", 'redact=["email"]')
        made = cli("deployments", "put", deployed, student, *options, *fallback, *pairs, "--json").json
        assert (made["canary"], made["shadow"]["student"]) == ({"student": other, "fraction": 0.1}, other)
        assert made["fallback"]["threshold"] == 0.8
        assert (made["gate"]["max_drop"], made["capture"]["redact"]) == (0.04, ["email"])
        assert made["auto"]["promote"] is True
        shown = cli("deployments", "show", deployed).out
        assert '"fraction": 0.1' in shown
        assert "redact" in shown

        file = tmp_path / "deployment.json"
        file.write_text(json.dumps({"student": student, "canary": {"student": other, "fraction": 0.5}}))
        assert cli("deployments", "put", deployed, "--file", file, "--json").json["canary"]["fraction"] == 0.5
        read_in = cli("deployments", "put", deployed, "--file", "-", "--json", stdin=json.dumps({"student": student}))
        assert (read_in.json["student"], read_in.json["canary"]) == (student, None)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "give a student and options, or a file"),
            (("st_1", "--file", "-"), "give a student and options, or a file"),
            (("--file", "none.json"), "none.json cannot be read"),
            (("st_1", "--gate", "max_drop"), "--gate takes KEY=VALUE, and not 'max_drop'"),
            (("st_1", "--capture", "=1"), "--capture takes KEY=VALUE"),
            (("st_1", "--gate", "wrong=1"), "/gate/wrong"),
            (("st_1", "--canary", "st_2"), "/canary/fraction"),
        ],
    )
    def test_what_does_not_go_together(self, cli: Cli, arguments: tuple[str, ...], words: str) -> None:
        done = cli("deployments", "put", "nothing", *arguments)
        assert done.code == 1
        assert words in done.err


class TestPredictions:
    def test_who_answered(self, client: Client, student: str, other: str, deployed: str) -> None:
        client.deployments.put(deployed, student, canary={"student": other, "fraction": 0.5})
        found = [client.predict(deployed, TEXT, sticky=f"user {number} ü\n") for number in range(12)]
        again = [client.predict(deployed, TEXT, sticky=f"user {number} ü\n") for number in range(12)]
        assert [one.arm for one in found] == [one.arm for one in again]
        assert {(one.arm, one.student) for one in found} == {("stable", student), ("canary", other)}
        assert {one.prediction_id for one in found} == {None}
        assert found[0].ids == []
        assert found[0].answered_by is None

    def test_who_answered_when_the_student_is_not_sure(
        self, client: Client, cli: Cli, student: str, other: str, deployed: str
    ) -> None:
        client.deployments.put(deployed, student, fallback={"to": other, "threshold": 1.0})
        assert client.predict(deployed, TEXT).answered_by == other
        assert f"answered by {other}" in cli("predict", deployed, TEXT, "--sticky", "me").out

    def test_feedback(self, client: Client, captured: Predictions) -> None:
        assert captured.prediction_id is not None
        assert captured.ids == [f"{captured.prediction_id}.0", f"{captured.prediction_id}.1"]
        told = client.predictions.feedback(captured.ids[0], "positive")
        assert (told.id, told.input, told.label) == (captured.ids[0], TEXT, "positive")
        assert told.labelled_at is not None
        assert client.predictions.feedback(told, "negative").label == "negative"
        assert [one.id for one in client.deployments.captures(NAME, labelled=True)] == [told.id]
        assert {one.id for one in client.deployments.captures(NAME)} == set(captured.ids)
        alone = client.predict(NAME, TEXT)
        assert alone.ids == [alone.prediction_id]

    def test_feedback_that_is_no_label(self, client: Client, captured: Predictions) -> None:
        with pytest.raises(ApiError) as caught:
            client.predictions.feedback(captured.ids[0], "no such label")
        assert caught.value.status == 422
        with pytest.raises(ApiError) as caught:
            client.predictions.feedback("pr_none", "positive")
        assert caught.value.status == 404

    def test_a_dataset_of_what_was_captured(self, client: Client, captured: Predictions) -> None:
        client.predictions.feedback(captured.ids[1], "negative")
        made = client.deployments.dataset_of_captures(NAME, name="seen", labels="both")
        assert (made.name, made.rows) == ("seen", 2)
        client.deployments.delete_captures(NAME)
        assert not client.deployments.captures(NAME).data
        with pytest.raises(ApiError) as caught:
            client.deployments.dataset_of_captures(NAME)
        assert caught.value.code == "nothing_captured"

    def test_at_the_command_line(self, cli: Cli, captured: Predictions) -> None:
        shown = cli("predict", NAME, TEXT).out
        assert "prediction pr_" in shown
        assert f"noted: {captured.ids[0]} is positive" in cli("feedback", captured.ids[0], "positive").out
        assert cli("feedback", captured.ids[1], "negative", "--json").json["label"] == "negative"
        assert captured.ids[0] in cli("deployments", "captures", NAME).out
        assert len(cli("deployments", "captures", NAME, "--labelled", "--json").json["data"]) == 2
        assert "nothing was captured" not in cli("deployments", "captures", NAME, "--unlabelled").out
        assert "3 rows" in cli("deployments", "dataset", NAME, "--name", "seen", "--labels", "answers").out
        assert cli("deployments", "dataset", NAME, "--json").json["source"] == f"deployment:{NAME}"


class TestTraffic:
    def test_what_the_arms_have_seen(self, client: Client, cli: Cli, student: str, deployed: str) -> None:
        client.deployments.put(deployed, student)
        found = client.deployments.traffic(deployed)
        assert (found.name, found.version, found.decision) == (deployed, 1, None)
        assert client.deployments.traffic(deployed, version=1).since == found.since
        assert "version 1" in cli("deployments", "traffic", deployed).out
        assert cli("deployments", "traffic", deployed, "--json").json["object"] == "deployment.traffic"
        assert cli("deployments", "traffic", "nothing").code == 1

    def test_as_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        compared = {"compared": 200, "agreed": 190, "agreement": 0.95, "agreement_lower_bound": 0.9}
        found = read(
            DeploymentTraffic,
            {
                "name": "live",
                "version": 3,
                "since": "2026-01-02T03:04:05Z",
                "arms": [
                    {"arm": "stable", "student": "st_1", "calls": 1200, "inputs": 2400, "errors": 0},
                    {
                        "arm": "shadow",
                        "student": "st_2",
                        "calls": 100,
                        "inputs": 200,
                        "errors": 2,
                        "error_rate": 0.02,
                        "p95_ms": 1.5,
                    }
                    | compared,
                ],
                "decision": {"verdict": "wait", "reason": "It has answered 200 inputs of 1,000."},
            },
        )
        show_traffic(found)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("live  version 3, since 2026-01-0")
        assert lines[2].split() == ["stable", "st_1", "1,200", "2,400", "0"]
        assert all(words in lines[3] for words in ("2 (2.00 %)", "95.00 % of 200", "90.00 %", "1.50 ms"))
        assert lines[4] == "wait: It has answered 200 inputs of 1,000."


class TestDisagreements:
    @pytest.fixture
    def differing(self, service: Service, student_folder: Path, tmp_path: Path) -> str:
        folder = tmp_path / "differing"
        shutil.copytree(student_folder, folder)
        (folder / "disagreements.json").write_text(json.dumps({"format": 1, "rows": ROWS}))
        (folder / "manifest.json").unlink()
        write_manifest(folder, kind="student", task="text-classification", labels=LABELS, max_length=32)
        return publish(service, folder)

    def test_page_by_page(self, client: Client, differing: str) -> None:
        first = client.students.disagreements(differing, limit=2)
        assert [(row.row, row.right) for row in first] == [(0, "teacher"), (1, "student")]
        assert first.has_more
        [last] = client.students.disagreements(differing, after=first[-1].row)
        assert (last.input, last.truth, last.right) == ("text 2", None, None)
        assert [row.row for row in client.students.disagreements(differing, right="student")] == [1]
        assert [row.row for row in client.students.disagreements(differing, truth="a")] == [0]

    def test_at_the_command_line(self, cli: Cli, differing: str) -> None:
        shown = cli("students", "disagreements", differing, "--limit", 2).out
        assert "a 0.900" in shown
        assert "… more: --after 1" in shown
        assert "text 2" in cli("students", "disagreements", differing, "--after", 1).out
        found = cli("students", "disagreements", differing, "--right", "teacher", "--json").json
        assert [row["row"] for row in found["data"]] == [0]
        assert "no disagreements" in cli("students", "disagreements", differing, "--right", "both").out

    def test_none_were_kept(self, client: Client, student: str) -> None:
        with pytest.raises(ApiError) as caught:
            client.students.disagreements(student)
        assert (caught.value.status, caught.value.code) == (404, "no_disagreements")

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (None, "–"),
            ({"label": "a", "score": 0.25}, "a 0.250"),
            ({"label": None, "score": None}, "None"),
            ({"score": 1.5}, "1.5"),
            ({"answer": ""}, "no answer"),
            ({"labels": ["a", "b"]}, "a b"),
            ({"answers": []}, "none"),
            (["O", None, "B-x"], "O – B-x"),
        ],
    )
    def test_what_was_said(self, answer: Any, words: str) -> None:
        assert said(answer) == words


class TestEconomics:
    def test_what_is_known(self, client: Client, student: str) -> None:
        found = client.students.economics(
            student, price_per_call=0.002, calls_per_month=1e6, host_cost_per_month=50, training_cost=10
        )
        assert (found.teacher_cost_per_month, found.student_cost_per_month) == (2000, 50)
        assert found.break_even_calls_per_month == pytest.approx(25_000)
        assert found.terms["training_cost"] == 10
        tokens = client.students.economics(
            student, price_per_1k_tokens=0.01, tokens_per_call=200, calls_per_month=1e6, host_cost_per_month=50
        )
        assert tokens.teacher_cost_per_month == pytest.approx(2000)
        with pytest.raises(ApiError) as caught:
            client.students.economics(student, calls_per_month=0, host_cost_per_month=-1)
        assert len(caught.value.problems) == 3

    def test_at_the_command_line(self, cli: Cli, student: str) -> None:
        asked = ("economics", student, "--calls-per-month", 1e6, "--host-cost-per-month", 50)
        shown = cli(*asked, "--price-per-call", 0.002, "--fallback-coverage", 0.9).out
        for words in ("2,000.00", "250.00", "1,750.00", "27,778 calls a month", "it saves 1,750.00 a month"):
            assert words in shown
        assert cli(*asked, "--price-per-call", 0.002, "--json").json["object"] == "student.economics"
        refused = cli(*asked)
        assert refused.code == 1
        assert "give one of price_per_call and price_per_1k_tokens" in refused.err
