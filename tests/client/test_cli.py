"""The command, in this process, against the real service."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from limbeck import Client, __version__
from limbeck.cli import app, output, reports, watching
from limbeck.cli.reports import show_report
from limbeck.objects import Job
from tests.client.conftest import Cli
from tests.client.stand_ins import REPORT, ScriptedWorker, Service


@pytest.fixture
def spec_file(spec: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(spec))
    return path


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == f"limbeck {__version__}"


def test_every_command_has_help_and_json() -> None:
    """A program can use whatever a person can."""
    for command in _commands():
        done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0
        assert "--json" in done.stdout, command


def _commands() -> list[list[str]]:
    found = [[str(command.name)] for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        found += [[str(group.name), str(command.name)] for command in group.typer_instance.registered_commands]
    assert len(found) > 25
    return found


class TestDatasets:
    def test_upload_list_show_rows_delete(self, cli: Cli, csv_file: Path) -> None:
        made = cli("datasets", "upload", csv_file, "--name", "tweets", "--json").json
        assert made["name"] == "tweets"
        assert made["id"] in cli("datasets", "list").out
        shown = cli("datasets", "show", made["id"])
        assert "60" in shown.out
        assert "label" in shown.out
        rows = cli("datasets", "rows", made["id"], "--limit", 2)
        assert len(rows.out.splitlines()) == 3
        assert cli("datasets", "rows", made["id"], "--limit", 2, "--json").json["has_more"]
        assert "deleted" in cli("datasets", "delete", made["id"]).out
        assert cli("datasets", "show", made["id"]).code == 1

    def test_a_text_that_looks_like_markup(self, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "markup.csv"
        path.write_text("text,label\n[bold]x[/bold] [/],a\n[red],b\n")
        made = cli("datasets", "upload", path, "--json").json
        assert "[bold]x[/bold] [/]" in cli("datasets", "rows", made["id"]).out


class TestJobs:
    def test_submit_list_show_cancel_delete(self, cli: Cli, spec_file: Path) -> None:
        made = cli("jobs", "submit", spec_file, "--idempotency-key", "cli-1", "--json").json
        assert cli("jobs", "submit", spec_file, "--idempotency-key", "cli-1", "--json").json["id"] == made["id"]
        assert made["id"] in cli("jobs", "list", "--status", "queued").out
        assert made["id"] not in cli("jobs", "list", "--status", "failed").out
        assert "did you mean queued?" in cli("jobs", "list", "--status", "qeued").err
        assert "queued" in cli("jobs", "show", made["id"]).out
        assert "queued" in cli("jobs", "events", made["id"]).out
        assert "no metrics" in cli("jobs", "metrics", made["id"]).out
        assert "cancelled" in cli("jobs", "cancel", made["id"]).out
        watched = cli("jobs", "watch", made["id"])
        assert watched.code == 1
        assert "cancelled" in watched.out
        assert cli("jobs", "delete", made["id"], "--json").json == {"id": made["id"], "deleted": True}

    def test_pause_and_resume(self, cli: Cli, spec_file: Path) -> None:
        job = cli("jobs", "submit", spec_file, "--json").json["id"]
        assert cli("jobs", "pause", job).out == f"{job} is paused\n"
        assert cli("jobs", "pause", job, "--json").json["status"] == "paused"
        assert job in cli("jobs", "list", "--status", "paused").out
        assert cli("jobs", "resume", job).out == f"{job} is queued\n"
        cli("jobs", "cancel", job)
        refused = cli("jobs", "pause", job)
        assert refused.code == 1
        assert "cancelled" in refused.err

    def test_problems_are_one_block_on_standard_error(self, cli: Cli, spec: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "bad.json"
        path.write_text(json.dumps({**spec, "seed": -1, "wrong": True}))
        done = cli("jobs", "submit", path)
        assert done.code == 1
        assert done.out == ""
        title, *problems = done.err.splitlines()
        assert "problems" in title
        assert [line.split()[0] for line in problems if line.startswith("  ")] == ["/seed", "/wrong"]

    def test_validate(self, cli: Cli, spec_file: Path, spec: dict[str, Any]) -> None:
        good = cli("jobs", "validate", spec_file)
        assert good.code == 0
        assert "valid" in good.out
        bad = cli("jobs", "validate", "-", stdin=json.dumps({**spec, "seed": -1}))
        assert bad.code == 1
        assert "/seed" in bad.err
        answer = cli("jobs", "validate", "-", "--json", stdin=json.dumps({**spec, "seed": -1}))
        assert answer.code == 1
        assert answer.json["problems"][0]["pointer"] == "/seed"

    @pytest.mark.parametrize("content", ["{", "[1]", ""])
    def test_a_file_that_is_no_spec(self, cli: Cli, tmp_path: Path, content: str) -> None:
        path = tmp_path / "job.json"
        path.write_text(content)
        done = cli("jobs", "submit", path)
        assert done.code == 1
        assert str(path) in done.err
        assert "cannot be read" in cli("jobs", "submit", tmp_path / "none.json").err

    def test_watch_without_a_terminal_writes_lines(
        self, service: Service, cli: Cli, spec_file: Path, client: Client
    ) -> None:
        job = cli("jobs", "submit", spec_file, "--json").json["id"]
        worker = ScriptedWorker(service, job)
        worker.claim()
        threading.Timer(0.5, worker.progress).start()
        threading.Timer(3.5, worker.fail).start()
        done = cli("jobs", "watch", job)
        assert done.code == 1
        assert "distil" in done.out
        assert "50%" in done.out
        assert "diverged" in done.out
        assert "lower the learning rate" in done.out
        assert "\x1b" not in done.out

    def test_watch_as_json_is_a_line_for_each_change(self, service: Service, cli: Cli, spec_file: Path) -> None:
        job = cli("jobs", "submit", spec_file, "--json").json["id"]
        worker = ScriptedWorker(service, job)
        worker.claim()
        threading.Timer(2.0, worker.fail).start()
        done = cli("jobs", "watch", job, "--json")
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert lines[0]["status"] == "running"
        assert lines[-1]["status"] == "failed"
        assert done.code == 1


class TestStudents:
    def test_list_show_report_download(self, cli: Cli, student: str, tmp_path: Path) -> None:
        assert student in cli("students", "list").out
        assert "text-classification" in cli("students", "show", student).out
        report = cli("students", "report", student).out
        for words in ("74.50 %", "+1.50 [+0.50, +2.50]", "7.0 MB int8", "0.51 ms", REPORT["verdict"], "1,234"):
            assert words in report
        assert cli("students", "report", student, "--json").json == REPORT
        folder = tmp_path / "copy"
        assert "verified" in cli("students", "download", student, folder).out
        again = cli("students", "download", student, folder, "--json").json
        assert not any(file["fetched"] for file in again["files"])
        assert "deleted" in cli("students", "delete", student).out

    def test_one_that_is_not_deployed_is_tried(self, cli: Cli, student: str) -> None:
        done = cli("students", "try", student, "what a lovely day", "and a sad one")
        assert done.code == 0, done.err
        assert done.out.count("  student  ") == 2
        assert (
            len(cli("students", "try", student, "-", "--no-teacher", "--json", stdin="one\ntwo\n").json["student"]) > 0
        )
        assert "limbeck students try" in cli("students", "try", student).err

    def test_deploy_predict_history_delete(self, cli: Cli, student: str) -> None:
        assert f"cli-test → {student}" in cli("deployments", "put", "cli-test", student).out
        assert student in cli("deployments", "show", "cli-test").out
        assert "cli-test" in cli("deployments", "list").out
        assert "put" in cli("deployments", "history", "cli-test").out
        answer = cli("predict", "cli-test", "what a lovely day", "and a sad one", "--top-k", 1, "--json").json
        assert [len(labels) for labels in answer] == [1, 1]
        assert "what a lovely day" in cli("predict", "cli-test", "what a lovely day").out
        assert len(cli("predict", "cli-test", "-", "--json", stdin="one\ntwo\n").json) == 2
        assert cli("predict", "cli-test").code == 1
        assert "pointed at no other" in cli("deployments", "rollback", "cli-test").err
        assert cli("deployments", "delete", "cli-test", "--if-version", 7).code == 1
        assert cli("deployments", "delete", "cli-test", "--if-version", 1).code == 0


class TestKeys:
    def test_the_secret_alone_is_on_standard_output(self, cli: Cli, service: Service) -> None:
        """So that `KEY=$(limbeck keys create read)` works."""
        made = cli("keys", "create", "read", "predict", "--name", "app", "--days", 1)
        secret = made.out.strip()
        assert secret.startswith("lk_")
        assert secret not in made.err
        assert secret not in cli("keys", "list").out
        assert cli("jobs", "list", LIMBECK_API_KEY=secret).code == 0
        refused = cli("keys", "list", LIMBECK_API_KEY=secret)
        assert refused.code == 1
        id_ = made.err.split(",")[0].strip()
        assert "revoked" in cli("keys", "delete", id_).out

    def test_a_scope_that_is_none(self, cli: Cli) -> None:
        refused = cli("keys", "create", "read", "predicts")
        assert refused.code == 2
        assert "did you mean predict?" in refused.err


def test_workers(cli: Cli) -> None:
    assert cli("workers").code == 0
    assert isinstance(cli("workers", "--json").json, list)


def test_nothing_listens(cli: Cli) -> None:
    done = cli("jobs", "list", LIMBECK_URL="http://127.0.0.1:9")
    assert done.code == 1
    assert "is the service running? start it with: limbeck up" in done.err
    assert "Traceback" not in done.err


def test_no_key(cli: Cli) -> None:
    done = cli("jobs", "list", LIMBECK_API_KEY="")
    assert done.code == 1
    assert "LIMBECK_API_KEY" in done.err


class _Impatient(Console):
    """Before whom somebody presses Ctrl-C at the first line."""

    def print(self, *objects: Any, **options: Any) -> None:
        raise KeyboardInterrupt


class TestWatching:
    def test_on_a_terminal_it_is_a_bar(
        self, service: Service, client: Client, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = Console(force_terminal=True, width=120, record=True)
        monkeypatch.setattr(watching, "console", terminal)
        job: Job = client.jobs.submit(spec)
        worker = ScriptedWorker(service, job.id)
        worker.claim()
        worker.progress()
        threading.Timer(3, worker.fail).start()
        ticks: list[None] = []
        ended = watching.watch(client, job, tick=lambda: ticks.append(None))
        assert ended.status == "failed"
        assert ticks
        shown = terminal.export_text()
        assert "distil …" in shown
        assert "█▁" in shown
        assert "0.6000" in shown
        assert "Ctrl-C leaves the view; the job goes on" in shown
        assert "the loss is not finite" in shown
        assert not shown.rstrip().endswith("goes on")

    def test_ctrl_c_leaves_the_job_running(
        self, service: Service, cli: Cli, client: Client, spec_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = cli("jobs", "submit", spec_file, "--json").json["id"]
        monkeypatch.setattr(watching, "console", _Impatient())
        left = cli("jobs", "watch", job)
        assert left.code == 130
        assert f"limbeck jobs watch {job}" in left.err
        assert client.jobs.get(job).status == "queued"


def test_a_report_with_less_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(
        {"arms": {"teacher": {}, "distilled": {"accuracy": 0.5}, "control": None}, "control_reason": "no_labels"}
    )
    assert "no_labels" in capsys.readouterr().out


def test_a_report_of_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(record=True, width=160)
    monkeypatch.setattr(reports, "console", terminal)
    monkeypatch.setattr(output, "console", terminal)
    show_report(
        {
            "metric": "pearson",
            "arms": {
                "teacher": {"pearson": 0.89, "spearman": 0.88, "parameters": None},
                "distilled": {"pearson": 0.87, "spearman": 0.86, "agreement": None},
            },
            "others": {"stage 1": {"pearson": 0.88, "spearman": 0.87}},
            "constant": {"pearson": 0.0, "spearman": 0.0},
            "comparisons": {
                "drop": {"value": 0.02, "low": 0.01, "high": 0.03},
                "others": {"stage 1": {"value": -0.01, "low": -0.02, "high": 0.0}},
            },
        }
    )
    shown = terminal.export_text()
    assert re.search(r"Pearson +drop +Spearman", shown)
    assert re.search(r"distilled +0\.8700 +\+0\.0200 \[\+0\.0100, \+0\.0300\] +0\.8600", shown)
    assert "distilled against stage 1: -0.0100 [-0.0200, +0.0000]" in shown
    assert re.search(r"constant answer\D+0\.0000", shown)
    assert "points" not in shown
    assert "%" not in shown


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (None, "–")]
)
def test_durations(value: float | None, words: str) -> None:
    assert output.seconds(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0 B"), (999, "999 B"), (18_200_000, "18.2 MB"), (5 * 10**12, "5.0 TB")]
)
def test_sizes(value: int, words: str) -> None:
    assert output.size(value) == words
