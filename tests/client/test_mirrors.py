"""A job copied to TensorBoard and MLflow, while it runs and once it has ended; read back from what was written."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from limbeck import Client, LimbeckError
from limbeck.extras import extra
from limbeck.mirrors import TensorBoard, flat, mirror
from limbeck.objects import Job, Point
from models import lifecycle
from models.artifacts import write_manifest
from models.lifecycle import NewStudent
from models.tables import new_id
from tests.app.conftest import eventually
from tests.client.conftest import Cli
from tests.client.stand_ins import REPORT, ScriptedWorker, Service


def written(folder: Path) -> Iterator[tuple[str, Any]]:
    """The (tag, value) of every summary in the event files of a folder, in the format of TensorFlow's records."""
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            for value in (event := Event.FromString(data[12 : 12 + size])).summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, (event.step, round(value.simple_value, 4))
                else:
                    yield value.tag.removesuffix("/text_summary"), value.tensor.string_val[0].decode()
            data = data[12 + size + 4 :]


def succeed(service: Service, job: str, folder: Path) -> None:
    """Let the running job end with a student."""
    id_ = new_id("st")
    manifest = service.store.publish(folder, f"students/{id_}")
    student = NewStudent(
        id=id_,
        hash=manifest.student_hash,
        artifact=f"students/{id_}",
        manifest=manifest.model_dump(mode="json"),
        report=REPORT,
    )
    with service.database.writing() as session:
        lifecycle.succeed(session, job, 1, student)


class Listing:
    """A mirror that is a list of what it was told."""

    def __init__(self) -> None:
        self.spec: Any = None
        self.seen: list[tuple[str, int]] = []
        self.documents: list[str] = []
        self.closed: list[str] = []

    def choices(self, spec: Any) -> None:
        self.spec = spec

    def points(self, points: Sequence[Point]) -> None:
        self.seen += [(point.name, point.step) for point in points]

    def document(self, name: str, text: str) -> None:
        self.documents.append(name)

    def close(self, job: Job) -> None:
        self.closed.append(job.status)


@pytest.fixture
def job(client: Client, spec: dict[str, Any]) -> str:
    return client.jobs.submit(spec).id


@pytest.fixture
def carded(student_folder: Path, tmp_path: Path) -> Path:
    """A student with a card."""
    folder = tmp_path / "carded"
    shutil.copytree(student_folder, folder)
    (folder / "manifest.json").unlink()
    (folder / "README.md").write_text("# A card\n")
    write_manifest(folder, kind="student", task="text-classification", labels=("a", "b"), max_length=32)
    return folder


def test_a_running_job_is_followed(
    service: Service, client: Client, job: str, student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, seen = ScriptedWorker(service, job), Listing()
    monkeypatch.setattr("limbeck.mirrors._LOOK_SECONDS", 0.0)
    thread = threading.Thread(target=mirror, args=(client, job, [seen]))
    thread.start()
    worker.claim()
    worker.progress()
    eventually(lambda: seen.seen == [("loss", 1), ("loss", 2)])
    assert not seen.closed
    succeed(service, job, student_folder)
    thread.join(30)
    assert seen.seen == [("loss", 1), ("loss", 2)]
    assert seen.spec["stages"][0]["student"]["layers"] == 1
    assert (seen.documents, seen.closed) == (["report.json"], ["succeeded"])


def test_a_mirror_is_closed_whatever_happens(client: Client, job: str) -> None:
    class Full(Listing):
        def choices(self, spec: Any) -> None:
            raise OSError("no space left")

    seen = Full()
    with pytest.raises(OSError, match="no space"):
        mirror(client, job, [seen])
    assert seen.closed == ["queued"]
    client.jobs.cancel(job)


def test_tensorboard(service: Service, cli: Cli, job: str, tmp_path: Path, carded: Path) -> None:
    worker = ScriptedWorker(service, job)
    worker.claim()
    worker.progress()
    succeed(service, job, carded)
    ran = cli("jobs", "log", job, "--tensorboard", tmp_path / "tb")
    assert ran.code == 0, ran.err
    folder = tmp_path / "tb" / job
    assert list(written(folder / "distilled-stage-0-phase-0")) == [("loss", (1, 0.7)), ("loss", (2, 0.6))]
    texts = dict(written(folder))
    assert texts.keys() == {"spec", "report.json", "README.md", "status"}
    assert "| stages.0.student.layers | 1 |" in texts["spec"]
    assert texts["README.md"] == "# A card\n"
    assert REPORT["verdict"] in texts["report.json"]
    assert texts["status"] == "succeeded"


@pytest.mark.filterwarnings("default")  # what its own libraries deprecate
def test_mlflow(service: Service, cli: Cli, job: str, tmp_path: Path, carded: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    worker = ScriptedWorker(service, job)
    worker.claim()
    worker.progress()
    succeed(service, job, carded)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ran = cli("jobs", "log", job, "--mlflow", uri, "--experiment", "tiny")
    assert ran.code == 0, ran.err
    store = mlflow.MlflowClient(tracking_uri=uri)
    [run] = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    assert (run.info.status, run.data.tags["limbeck.job"]) == ("FINISHED", job)
    assert run.data.params["stages.0.student.layers"] == "1"
    history = store.get_metric_history(run.info.run_id, "distilled/stage 0/phase 0/loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.7), (2, 0.6)]
    assert {one.path for one in store.list_artifacts(run.info.run_id)} == {"report.json", "README.md"}


def test_somewhere_must_be_named(cli: Cli, job: str) -> None:
    ran = cli("jobs", "log", job)
    assert ran.code == 1
    assert "--tensorboard" in ran.err


def test_what_is_not_installed_is_said() -> None:
    with pytest.raises(LimbeckError, match="needs limbeck_no_such_library") as refused:
        extra("limbeck_no_such_library.part", "mlflow")
    assert refused.value.hint == "pip install 'limbeck[mlflow]'"


def test_a_spec_as_parameters() -> None:
    spec = {"a": {"b": [1, {"c": "x"}], "d": None}, "e": True, "f": 0.5}
    assert dict(flat(spec)) == {"a.b.0": "1", "a.b.1.c": "x", "e": "true", "f": "0.5"}


def test_a_second_series_of_a_name_lies_beside_the_first(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, "job_1")
    board.points([Point("distilled", 0, 0, "loss", 1, 0.5), Point("control", 1, 0, "loss", 1, 0.75)])
    board.points([Point("distilled", 0, 0, "loss", 2, 0.25)])
    board.close(Job(id="job_1", name="", status="failed", created_at=datetime.now(UTC)))
    assert list(written(tmp_path / "job_1" / "distilled-stage-0-phase-0")) == [("loss", (1, 0.5)), ("loss", (2, 0.25))]
    assert list(written(tmp_path / "job_1" / "control-stage-1-phase-0")) == [("loss", (1, 0.75))]
