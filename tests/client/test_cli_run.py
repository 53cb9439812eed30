"""`limbeck init` and `limbeck run`, and files that name their rows."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import Client
from limbeck.cli import columns, jobfile, running
from limbeck.cli.documents import read_document
from limbeck.cli.jobfile import KINDS, TaskKind
from limbeck.errors import LimbeckError
from limbeck.objects import Job, read
from models import specs
from models.errors import Invalid
from tests.client.conftest import Cli
from tests.client.stand_ins import REPORT, ScriptedWorker, Service
from tests.client.test_bundles import succeed


@pytest.fixture
def job_file(cli: Cli, csv_file: Path) -> Path:
    """A job file beside its rows, as init writes it; with a teacher whose config is on no disk."""
    assert cli("init", "job.yaml", "--dataset", csv_file, "--teacher", "hub:some/teacher").code == 0
    return Path("job.yaml")


def _turned_on(text: str) -> str:
    """Every choice that is off, made."""
    return re.sub(r"^( *)#(?=\w)", r"\1", text, flags=re.MULTILINE)


class TestTheFile:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_the_spec_that_it_is_written_of(self, kind: TaskKind, tmp_path: Path) -> None:
        spec = jobfile.job(kind, file="rows.csv", columns={}, name="x")
        text = jobfile.written(spec, "job.yaml")
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        assert read_document(path, "").value == spec
        assert max(len(line) for line in text.splitlines()) <= 120

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("on", [False, True])
    def test_is_valid_with_and_without_what_is_off(self, kind: TaskKind, on: bool, tmp_path: Path) -> None:
        text = jobfile.written(jobfile.job(kind, file="rows.csv", columns={}, name="x"), "job.yaml")
        assert (_turned_on(text) != text) or not on
        path = tmp_path / "job.yaml"
        path.write_text(_turned_on(text) if on else text, encoding="utf-8")
        spec = read_document(path, "").value
        spec["dataset"]["id"] = spec["dataset"].pop("file")
        if on:
            assert spec["max_seconds"]
        specs.parse_job(spec)

    def test_explains_nothing_that_a_job_has_not(self, tmp_path: Path) -> None:
        """Every pointer of the table stands in some file, and every choice of a file in the table."""
        seen: set[str] = set()
        for kind in KINDS:
            path = tmp_path / "job.yaml"
            path.write_text(
                _turned_on(jobfile.written(jobfile.job(kind, file="f", columns={}, name="x"), "job.yaml")), "utf-8"
            )
            lines = read_document(path, "").lines
            seen |= {pointer for pointer in lines if pointer and not pointer.endswith("/0")}
        assert seen == set(jobfile.EXPLANATIONS)

    def test_is_read_by_any_yaml_reader_alike(self) -> None:
        spec = jobfile.job("text-classification", file="on", columns={"label": "no"}, name="x")
        assert yaml.safe_load(jobfile.written(spec, "job.yaml")) == spec

    def test_resolves_to_what_the_equal_json_does(
        self, cli: Cli, client: Client, job_file: Path, csv_file: Path, tmp_path: Path
    ) -> None:
        """Against the real service."""
        dataset = client.datasets.upload(csv_file)
        text = job_file.read_text("utf-8").replace(f"file: {csv_file.name}", f"id: {dataset.id}")
        (tmp_path / "by_id.yaml").write_text(text, encoding="utf-8")
        spec = yaml.safe_load(text)
        (tmp_path / "by_id.json").write_text(json.dumps(spec), encoding="utf-8")
        of_yaml, of_json = (
            cli("jobs", "validate", tmp_path / name, "--json").json for name in ("by_id.yaml", "by_id.json")
        )
        assert of_yaml["valid"]
        assert of_yaml["resolved_spec"] == of_json["resolved_spec"]
        assert of_yaml["resolved_spec"]["stages"][0]["phases"][0]["schedule"]["learning_rate"] == 1e-4

    def test_is_not_written_over(self, cli: Cli, job_file: Path) -> None:
        before = job_file.read_text("utf-8")
        again = cli("init", job_file, "--task", "text-regression")
        assert again.code == 1
        assert "--force" in again.err
        assert job_file.read_text("utf-8") == before
        assert cli("init", job_file, "--task", "text-regression", "--force", "--json").json["spec"]["task"]["target"]
        assert "text-regression" in job_file.read_text("utf-8")

    def test_a_task_that_is_none(self, cli: Cli) -> None:
        refused = cli("init", "--task", "text-classifcation")
        assert refused.code == 2
        assert "text-classification" in refused.err


class TestColumns:
    @pytest.mark.parametrize(
        ("name", "content", "kind", "found"),
        [
            ("a.csv", "id,tweet,mood\n" + "".join(f"{n},my day {n},{'up' if n % 2 else 'down'}\n" for n in range(9)),
             "text-classification", {"text": "tweet", "label": "mood"}),
            ("a.tsv", "sentence\tlabel\nhello, you\t0\nbye\t1\n", "text-classification",
             {"text": "sentence", "label": "label"}),
            ("a.csv", "text,score\none,0.25\ntwo,1.5\n", "text-regression", {"text": "text", "target": "score"}),
            ("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n\n{"tokens": ["b"], "tags": ["O"]}\n',
             "token-classification", {"tokens": "tokens", "tags": "tags"}),
            ("a.jsonl", '{"question": "who?", "context": "me", "answers": {"text": ["me"], "answer_start": [0]}}\n',
             "question-answering", {"question": "question", "context": "context", "answers": "answers"}),
            ("a.jsonl", '{"text": "x", "labels": ["a", "b"]}\n', "text-classification",
             {"text": "text", "label": "labels"}),
        ],
    )  # fmt: skip
    def test_are_found(self, tmp_path: Path, name: str, content: str, kind: str, found: dict[str, str]) -> None:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        assert columns.guess(path, None) == (kind, found)

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.csv", "one,two\nx,y\n", "its columns are: one, two"),
            ("a.csv", "", "no rows"),
            ("a.jsonl", "[1]\n", "not a JSON object"),
            ("a.jsonl", "{\n", "cannot be read"),
            ("a.parquet", "PAR1", "neither CSV, TSV nor JSONL"),
        ],
    )
    def test_are_not_found(self, tmp_path: Path, name: str, content: str, words: str) -> None:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        with pytest.raises(LimbeckError, match=re.escape(words)):
            columns.guess(path, "text-classification")

    def test_of_a_file_that_is_not_there(self, cli: Cli) -> None:
        done = cli("init", "--dataset", "none.csv")
        assert done.code == 1
        assert "none.csv cannot be read" in done.err
        assert not Path("job.yaml").exists()


class TestRun:
    def test_from_the_file_to_the_card(
        self, service: Service, cli: Cli, client: Client, job_file: Path, student_folder: Path
    ) -> None:
        stopping = threading.Event()

        def work() -> None:
            while not stopping.wait(0.1):
                for job in client.jobs.list(status="queued", name="rows"):
                    succeed(service, job.id, student_folder)
                    return

        worker = threading.Thread(target=work)
        worker.start()
        try:
            done = cli("run", job_file)
        finally:
            stopping.set()
            worker.join()
        assert done.code == 0, done.err
        for words in ("teacher", "distilled", "control", REPORT["verdict"], "limbeck predict rows", "succeeded"):
            assert words in done.out
        assert "uploaded rows.csv" in done.err
        assert "\x1b" not in done.out

    def test_rows_are_uploaded_once(self, cli: Cli, client: Client, job_file: Path, csv_file: Path) -> None:
        csv_file.write_text(csv_file.read_text() + "once more,a\n")
        first = cli("run", job_file, "--no-watch", "--json").json
        count = len(list(client.datasets.all()))
        second = cli("run", job_file, "--no-watch", "--json").json
        assert first["id"] != second["id"]
        assert first["spec"]["dataset"]["id"] == second["spec"]["dataset"]["id"]
        assert len(list(client.datasets.all())) == count
        csv_file.write_text(csv_file.read_text() + "and another,a\n")
        assert cli("jobs", "submit", job_file, "--json").json["spec"]["dataset"]["id"] != first["spec"]["dataset"]["id"]

    def test_three_files(self, cli: Cli, client: Client, job_file: Path, csv_file: Path, tmp_path: Path) -> None:
        spec = yaml.safe_load(job_file.read_text("utf-8"))
        lines = csv_file.read_text().splitlines()
        for place, rows in (("train", lines[1:40]), ("validation", lines[40:50]), ("test", lines[50:])):
            (tmp_path / f"{place}.csv").write_text("\n".join([lines[0], *rows]) + "\n")
        spec["dataset"] = {place: {"file": f"{place}.csv"} for place in ("train", "validation", "test")}
        job_file.write_text(yaml.safe_dump(spec), encoding="utf-8")
        made = cli("run", job_file, "--no-watch", "--json").json
        rows = [client.datasets.get(made["spec"]["dataset"][place]).rows for place in ("train", "validation", "test")]
        assert rows == [39, 10, 11]

    def test_a_job_that_fails(self, service: Service, cli: Cli, client: Client, job_file: Path) -> None:
        def fail() -> None:
            job = next(iter(client.jobs.list(status="queued", name="rows")))
            worker = ScriptedWorker(service, job.id)
            worker.claim()
            worker.fail()

        threading.Timer(2.0, fail).start()
        done = cli("run", job_file)
        assert done.code == 1
        assert "hint: lower the learning rate" in done.out

    def test_what_is_wrong_is_told_with_its_line_before_rows_are_sent(
        self, cli: Cli, client: Client, job_file: Path, csv_file: Path
    ) -> None:
        csv_file.write_text(csv_file.read_text() + "never sent,a\n")
        job_file.write_text(
            job_file.read_text("utf-8").replace("layers: 2 ", "layers: 0 ").replace("seed: 0", "sed: 0")
        )
        lines = job_file.read_text("utf-8").splitlines()
        wrong = next(place for place, line in enumerate(lines, 1) if "layers: 0" in line)
        count = len(list(client.datasets.all()))
        done = cli("run", job_file)
        assert (done.code, done.out) == (2, "")
        assert f"/student/layers  job.yaml:{wrong}" in done.err
        assert "/sed  job.yaml:" in done.err
        assert len(list(client.datasets.all())) == count
        assert cli("jobs", "submit", job_file).code == 1

    def test_a_column_that_is_not_there(self, cli: Cli, job_file: Path) -> None:
        job_file.write_text(job_file.read_text("utf-8").replace("label: label", "label: lable"))
        done = cli("run", job_file, "--no-watch")
        assert done.code == 2
        assert "/task/label  job.yaml:13" in done.err
        assert "it has 'label', 'text'" in done.err

    def test_validate_uploads_nothing(self, cli: Cli, client: Client, job_file: Path, csv_file: Path) -> None:
        csv_file.write_text(csv_file.read_text() + "only looked at,a\n")
        count = len(list(client.datasets.all()))
        done = cli("jobs", "validate", job_file)
        assert done.code == 0
        assert "limbeck run uploads them" in done.out
        assert cli("jobs", "validate", job_file, "--json").json["estimates_reason"]
        assert len(list(client.datasets.all())) == count

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("a: 1\na: 2\n", "line 2: the key 'a'"),
            ("- 1\n", "limbeck init writes one"),
            ("dataset: {file: x.csv, id: ds_1}\n", "a file or an id"),
            ("dataset: {train: {files: x.csv}}\n", "dataset/train takes"),
            ("dataset: {file: none.csv}\n", "none.csv"),
        ],
    )
    def test_a_file_that_is_no_job(self, cli: Cli, content: str, words: str) -> None:
        Path("bad.yaml").write_text(content)
        done = cli("run", "bad.yaml")
        assert done.code == (1 if "none.csv" in content else 2)
        assert words in done.err

    def test_a_file_that_is_not_there(self, cli: Cli) -> None:
        assert cli("run", "none.yaml").code == 2


class TestNext:
    def _job(self, **spec: Any) -> Job:
        raw = {"id": "job_1", "name": "My tweets", "status": "succeeded", "created_at": "2026-11-01T00:00:00Z"}
        return read(Job, {**raw, "student_id": "st_1", "spec": spec})

    def _commands(self, job: Job, *, passed: bool) -> list[str]:
        return [command for command, _ in running.next_commands(job, {"gate": {"passed": passed}}, '"hello"')]

    def test_a_deployment_that_moved_is_asked(self) -> None:
        commands = self._commands(self._job(promote={"deployment": "mood"}), passed=True)
        assert commands[0] == 'limbeck predict mood "hello"'

    def test_a_gate_that_failed_is_looked_into(self) -> None:
        commands = self._commands(self._job(promote={"deployment": "mood"}), passed=False)
        assert commands[0] == "limbeck students disagreements st_1"
        assert commands[1] == 'limbeck students try st_1 "hello"'
        assert "--override" in commands[2]

    def test_without_a_deployment_one_is_made(self) -> None:
        commands = self._commands(self._job(), passed=True)
        assert commands[:2] == ['limbeck students try st_1 "hello"', "limbeck deployments put my-tweets st_1"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("My tweets (2)", "my-tweets-2"), ("--", "student"), ("x" * 80, "x" * 63), ("Größe", "gr-e"), ("", "student")],
)
def test_names_that_a_deployment_may_have(text: str, name: str) -> None:
    found = jobfile.deployment_name(text)
    assert found == name
    with pytest.raises(Invalid) as raised:  # for the rest of the job is not there
        specs.parse_job({"promote": {"deployment": found}})
    assert not [problem for problem in raised.value.problems if problem.pointer == "/promote/deployment"]
