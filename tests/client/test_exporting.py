"""`limbeck students export`: a folder that the Hub, transformers and onnxruntime take as it is."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from limbeck import Client, LimbeckError, hub
from limbeck.hub import Choices
from models.artifacts import Origin, write_manifest
from tests.client.conftest import Cli, publish
from tests.client.stand_ins import Service
from tests.factories import LABELS
from worker import export

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-report"
APACHE = Origin(reference="hub:org/teacher@main", identity="a" * 64, checkpoint="b" * 64, license="Apache-2.0")


@pytest.fixture(scope="module")
def carded(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny student at both precisions, with the card and the report of a real one."""
    folder = tmp_path_factory.mktemp("carded") / "student"
    shutil.copytree(student_folder, folder)
    (folder / "manifest.json").unlink()
    for name in ("README.md", "report.json"):
        shutil.copy(EXAMPLE / name, folder)
    (folder / "disagreements.json").write_text("[]")
    export.quantize(folder)
    spec = {"name": "sst2-sentiment", "dataset": {"id": "ds_1"}}
    write_manifest(
        folder, kind="student", task="text-classification", labels=LABELS, max_length=32, spec=spec, teachers=[APACHE]
    )
    return folder


@pytest.fixture
def student(service: Service, carded: Path) -> str:
    return publish(service, carded)


def test_the_card_is_one(cli: Cli, student: str, tmp_path: Path) -> None:
    ran = cli("students", "export", student, tmp_path / "out", "--dataset", "org/tweets", "--json")
    assert ran.code == 0, ran.err
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "text-classification",
    )
    assert data.base_model == ["org/teacher"]
    assert data.datasets == ["org/tweets"]
    assert data.tags == ["knowledge-distillation", "onnx", "limbeck"]
    assert data.model_name == "sst2-sentiment"
    found = {(one.metric_name, one.metric_type, one.metric_value, one.dataset_type) for one in data.eval_results}
    assert ("accuracy", "accuracy", 0.7901, "org/tweets") in found
    assert {kind for _, kind, _, _ in found} == set(data.metrics) == {"accuracy", "f1", "matthews_correlation"}
    assert metadata_load(tmp_path / "out" / "README.md") == ran.json["card"]
    assert card.content.count("\n---\n") == 1
    assert '"onnx/model_quantized.onnx"' in card.text
    assert "student.int8.onnx" not in card.text
    assert "golden.json" not in card.text


def test_others_open_the_folder(client: Client, student: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    client.students.export(student, folder)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("report.json", "manifest.json", "onnx/model.onnx", "onnx/model_quantized.onnx"),
    }
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    text = AutoTokenizer.from_pretrained(folder)("a good day", return_tensors="pt")
    with torch.inference_mode():
        expected = network(**text).logits.numpy()
    for name, tolerance in (("model.onnx", 1e-4), ("model_quantized.onnx", 0.1)):
        session = onnxruntime.InferenceSession(folder / "onnx" / name)
        feed = {node.name: text[node.name].numpy() for node in session.get_inputs()}
        np.testing.assert_allclose(session.run(["logits"], feed)[0], expected, atol=tolerance)


def test_it_verifies_and_is_the_same_student(cli: Cli, client: Client, student: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for _ in range(2):  # the second time over the first
        ran = cli("students", "export", student, folder, "--rows")
        assert ran.code == 0, ran.err
        assert cli("students", "verify", folder).code == 0
    assert json.loads((folder / "manifest.json").read_text())["student_hash"] == client.students.get(student).hash
    assert (folder / "golden.json").is_file()
    assert "golden.json" in (folder / "README.md").read_text()


def test_a_folder_of_something_else_is_left_alone(cli: Cli, student: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    ran = cli("students", "export", student, tmp_path / "out")
    assert ran.code == 1
    assert "is not empty" in ran.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [(["MIT", "mit"], "mit"), (["MIT", "Apache-2.0"], "unknown"), (["MIT", None], "unknown"), ([], "unknown")],
)
def test_a_licence_is_the_sources_if_they_agree(licenses: list[str | None], expected: str) -> None:
    manifest = {"task": "text-regression", "teachers": [{"reference": "file:x", "license": one} for one in licenses]}
    head = hub.metadata(manifest, {}, Choices())
    assert head["license"] == expected
    assert head["pipeline_tag"] == "text-classification"
    assert head.keys().isdisjoint({"base_model", "metrics", "model-index", "datasets"})
    assert hub.metadata(manifest, {}, Choices(license="cc0-1.0"))["license"] == "cc0-1.0"


class TestPush:
    @pytest.fixture
    def stand_in(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """As much of the Hub as an upload asks: its address, and what it was sent by path."""
        seen: dict[str, Any] = {}

        class Hub(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                seen[self.path] = (self.headers["Authorization"], body)
                answer: dict[str, Any] = {"url": f"http://{self.headers['Host']}/org/tiny"}
                if "/preupload/" in self.path:
                    files = [one["path"] for one in json.loads(body)["files"]]
                    answer = {"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in files]}
                elif "/commit/" in self.path:
                    answer = {"commitUrl": f"{answer['url']}/commit/1", "commitOid": "1", "success": True}
                self._say(answer)

            def do_GET(self) -> None:
                self._say({"id": "org/tiny", "sha": "0" * 40, "siblings": []})

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Quiet."""

            def _say(self, answer: dict[str, Any]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        server.server_close()
        thread.join()

    def test_every_file_arrives(
        self,
        client: Client,
        student: str,
        tmp_path: Path,
        stand_in: tuple[str, dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        address, seen = stand_in
        monkeypatch.setenv("HF_TOKEN", "hf_one")
        folder = tmp_path / "out"
        client.students.export(student, folder)
        assert hub.push(folder, "org/tiny", endpoint=address).endswith("org/tiny")
        token, made = seen["/api/repos/create"]
        assert (token, json.loads(made)["visibility"]) == ("Bearer hf_one", "private")
        lines = [json.loads(line) for line in seen["/api/models/org/tiny/commit/main"][1].splitlines()]
        sent = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        assert sent == {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    def test_no_token(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        with pytest.raises(LimbeckError, match="no token") as refused:
            hub.push(tmp_path, "org/tiny")
        assert "HF_TOKEN" in str(refused.value.hint)

    def test_what_the_hub_refuses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_one")
        with pytest.raises(LimbeckError, match="refused not a name"):
            hub.push(tmp_path, "not a name")
