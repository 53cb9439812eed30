"""Manifests, and the store over its three places: a folder, a file system in memory, and a real S3 server."""

import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from models import artifacts
from models.artifacts import MANIFEST, Store, read_manifest, sha256, verify, write_manifest
from models.errors import ArtifactDamaged, Conflict, Invalid, Missing, StorageFailure

KEY = "students/st_0123456789"


def artifact(folder: Path, weights: bytes = b"weights", report: str = "{}") -> Path:
    """A small finished artifact."""
    (folder / "more").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    (folder / "report.json").write_text(report, "utf-8")
    (folder / "more" / "notes.txt").write_text("deep", "utf-8")
    write_manifest(folder, kind="student", labels=["a", "b"], max_length=64, data={"train": "0" * 64})
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a bucket of a real S3 server (moto's) on this machine."""
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("limbeck-test")
        yield "s3://limbeck-test"
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "file":
            return f"file://{tmp_path / 'a store'}"
        case "memory":
            return f"memory://{uuid.uuid4().hex}"
        case _:
            return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str, tmp_path: Path) -> Store:
    return Store(url, tmp_path / "cache")


class TestManifest:
    def test_it_names_every_file(self, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        manifest = verify(folder)
        assert set(manifest.files) == {
            "config.json", "model.safetensors", "more/notes.txt", "report.json", "tokenizer.json"
        }  # fmt: skip
        assert manifest.entry("more/notes.txt").size == 4
        assert manifest.files["report.json"].sha256 == sha256(folder / "report.json")
        assert manifest.labels == ["a", "b"]
        assert manifest.loss_convention == 1
        assert read_manifest(folder) == manifest

    def test_the_hash_is_the_students_and_not_the_reports(self, tmp_path: Path) -> None:
        one = verify(artifact(tmp_path / "1", report="{}"))
        other = verify(artifact(tmp_path / "2", report='{"seconds": 3}'))
        third = verify(artifact(tmp_path / "3", weights=b"other"))
        assert one.student_hash == other.student_hash != third.student_hash

    def test_writing_it_again_replaces_it(self, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        (folder / "report.json").write_text("[]", "utf-8")
        write_manifest(folder, kind="student")
        assert verify(folder).files["report.json"].size == 2

    def test_only_exact_names_are_found(self, tmp_path: Path) -> None:
        manifest = verify(artifact(tmp_path / "a"))
        for name in ("../a/config.json", "./config.json", "Config.json", "more", "", "more//notes.txt", MANIFEST):
            with pytest.raises(Missing):
                manifest.entry(name)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "more/notes.txt"])
    def test_a_changed_file_is_damage(self, tmp_path: Path, name: str) -> None:
        folder = artifact(tmp_path / "a")
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(ArtifactDamaged, match=name):
            verify(folder)

    def test_an_absent_file_is_damage(self, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        (folder / "config.json").unlink()
        with pytest.raises(ArtifactDamaged, match=r"config\.json is missing"):
            verify(folder)

    def test_an_added_file_is_damage(self, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        (folder / "extra.bin").write_bytes(b"x")
        with pytest.raises(ArtifactDamaged, match="not in the artifact's manifest"):
            verify(folder)

    def test_links_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("s", "utf-8")
        folder = artifact(tmp_path / "a")
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(tmp_path / "secret")
        with pytest.raises(ArtifactDamaged, match="link"):
            verify(folder)
        with pytest.raises(ArtifactDamaged, match="link"):
            write_manifest(folder, kind="student")

    def test_a_link_to_a_folder_is_refused(self, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        shutil.move(folder / "more", tmp_path / "elsewhere")
        (folder / "more").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArtifactDamaged, match="link"):
            verify(folder)

    @pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "a\\b", "a//b", ".hidden", "a\x00b", ""])
    def test_a_manifest_that_points_elsewhere_is_damage(self, tmp_path: Path, name: str) -> None:
        folder = artifact(tmp_path / "a")
        manifest = read_manifest(folder)
        entry = manifest.files["config.json"]
        forged = manifest.model_copy(update={"files": {**manifest.files, name: entry}})
        (folder / MANIFEST).write_text(forged.model_dump_json(), "utf-8")
        with pytest.raises(ArtifactDamaged):
            verify(folder)

    @pytest.mark.parametrize("document", ["", "{}", "[]", "{", '{"format": 2}'])
    def test_an_unreadable_manifest_is_damage(self, tmp_path: Path, document: str) -> None:
        folder = artifact(tmp_path / "a")
        (folder / MANIFEST).write_text(document, "utf-8")
        with pytest.raises(ArtifactDamaged):
            verify(folder)


class TestFiles:
    def test_a_file_comes_back(self, store: Store, tmp_path: Path) -> None:
        local = tmp_path / "rows"
        local.write_bytes(b"rows" * 1000)
        assert not store.exists("datasets/ds_1.parquet")
        store.put_file(local, "datasets/ds_1.parquet")
        assert store.exists("datasets/ds_1.parquet")
        for _ in range(2):
            found = store.fetch_file("datasets/ds_1.parquet", sha256=sha256(local))
            assert found.read_bytes() == local.read_bytes()
        assert store.list("datasets") == ["datasets/ds_1.parquet"]

    def test_another_content_is_damage(self, store: Store, tmp_path: Path) -> None:
        local = tmp_path / "rows"
        local.write_bytes(b"rows")
        store.put_file(local, "datasets/ds_1.parquet")
        with pytest.raises(ArtifactDamaged):
            store.fetch_file("datasets/ds_1.parquet", sha256="0" * 64)

    def test_an_absent_file_is_missing(self, store: Store) -> None:
        with pytest.raises(Missing):
            store.fetch_file("datasets/ds_1.parquet")

    def test_delete_leaves_nothing(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "rows").write_bytes(b"rows")
        store.put_file(tmp_path / "rows", "datasets/ds_1.parquet")
        store.fetch_file("datasets/ds_1.parquet")
        store.delete("datasets/ds_1.parquet")
        store.delete("datasets/ds_1.parquet")
        assert not store.exists("datasets/ds_1.parquet")
        assert store.list("datasets") == []
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        with pytest.raises(Missing):
            store.fetch_file("datasets/ds_1.parquet")

    def test_a_link_is_not_stored(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("s", "utf-8")
        (tmp_path / "rows").symlink_to(tmp_path / "secret")
        with pytest.raises(StorageFailure):
            store.put_file(tmp_path / "rows", "datasets/ds_1.parquet")

    @pytest.mark.parametrize(
        "key",
        ["", "students", "students/", "/students/a", "students/..", "students/.x", "../students/a", "students/a/b",
         "students/a\x00", "STUDENTS/a", "students/a\n", "students//a", "students/" + "a" * 5000],
    )  # fmt: skip
    def test_a_key_that_cannot_be_is_refused_by_every_verb(self, store: Store, tmp_path: Path, key: str) -> None:
        (tmp_path / "rows").write_bytes(b"rows")
        folder = artifact(tmp_path / "a")
        for verb in (store.fetch_file, store.fetch_folder, store.delete, store.exists, store.manifest):
            with pytest.raises(Invalid):
                verb(key)
        with pytest.raises(Invalid):
            store.put_file(tmp_path / "rows", key)
        with pytest.raises(Invalid):
            store.publish(folder, key)
        with pytest.raises(Invalid):
            store.open_file(key, "config.json")


class TestFolders:
    def test_what_is_published_is_what_is_fetched(self, store: Store, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        assert not store.exists(KEY)
        published = store.publish(folder, KEY)
        shutil.rmtree(folder)
        assert store.exists(KEY)
        fetched = store.fetch_folder(KEY)
        assert verify(fetched) == published == store.manifest(KEY)
        assert store.fetch_folder(KEY) == fetched
        assert store.list("students/") == [KEY]

    def test_one_file_is_read_by_its_name(self, store: Store, tmp_path: Path) -> None:
        manifest = store.publish(artifact(tmp_path / "a"), KEY)
        stream, entry = store.open_file(KEY, "more/notes.txt")
        with stream:
            assert stream.read() == b"deep"
        assert entry == manifest.files["more/notes.txt"]
        stream, entry = store.open_file(KEY, MANIFEST)
        with stream:
            assert len(stream.read()) == entry.size

    @pytest.mark.parametrize(
        "name",
        ["nothing", "../st_0123456789/config.json", "/etc/passwd", "more", "", "more/../config.json", "config.json/",
         "..%2fconfig.json", "config.json\x00", "a" * 4096],
    )  # fmt: skip
    def test_no_other_name_is_found(self, store: Store, tmp_path: Path, name: str) -> None:
        store.publish(artifact(tmp_path / "a"), KEY)
        with pytest.raises(Missing):
            store.open_file(KEY, name)

    def test_publishing_again_changes_nothing(self, store: Store, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        assert store.publish(folder, KEY) == store.publish(folder, KEY)

    def test_another_artifact_under_the_same_key_is_a_conflict(self, store: Store, tmp_path: Path) -> None:
        first = store.publish(artifact(tmp_path / "a"), KEY)
        with pytest.raises(Conflict):
            store.publish(artifact(tmp_path / "b", weights=b"other"), KEY)
        assert store.manifest(KEY) == first

    def test_a_damaged_folder_is_not_published(self, store: Store, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        (folder / "config.json").write_text("[]", "utf-8")
        with pytest.raises(ArtifactDamaged):
            store.publish(folder, KEY)
        assert not store.exists(KEY)

    def test_an_unfinished_folder_is_not_published(self, store: Store, tmp_path: Path) -> None:
        folder = artifact(tmp_path / "a")
        (folder / MANIFEST).unlink()
        with pytest.raises(ArtifactDamaged):
            store.publish(folder, KEY)

    def test_absent_is_missing(self, store: Store) -> None:
        with pytest.raises(Missing):
            store.fetch_folder(KEY)
        with pytest.raises(Missing):
            store.manifest(KEY)
        with pytest.raises(Missing):
            store.open_file(KEY, "config.json")
        assert store.list("students") == []

    def test_inspection_reads_the_store_itself(self, store: Store, url: str, tmp_path: Path) -> None:
        manifest = store.publish(artifact(tmp_path / "a"), KEY)
        store.fetch_folder(KEY)
        found = store.inspect(KEY, manifest)
        assert {one.path for one in found} == {*manifest.files, MANIFEST}
        assert [one.problem for one in found if one.problem] == []
        assert {one.path: one.sha256 for one in found if one.path != MANIFEST} == {
            name: entry.sha256 for name, entry in manifest.files.items()
        }
        files, root = fsspec.core.url_to_fs(url)
        files.pipe_file(f"{root}/{KEY}/config.json", b"[]")
        files.rm_file(f"{root}/{KEY}/more/notes.txt")
        files.pipe_file(f"{root}/{KEY}/extra.txt", b"")
        files.pipe_file(f"{root}/{KEY}/{MANIFEST}", b"{}")
        problems = {one.path: one.problem for one in store.inspect(KEY, manifest) if one.problem}
        assert problems == {
            "config.json": "is not the file that was published",
            "more/notes.txt": "is missing",
            "extra.txt": "is not in the manifest",
            MANIFEST: "is not the manifest that was published",
        }
        assert {one.problem for one in store.inspect("students/st_none", manifest)} == {"is missing"}

    def test_delete_leaves_nothing(self, store: Store, url: str, tmp_path: Path) -> None:
        other = "students/st_01234567890"
        store.publish(artifact(tmp_path / "a"), KEY)
        store.publish(artifact(tmp_path / "b"), other)
        store.fetch_folder(KEY)
        store.delete(KEY)
        store.delete(KEY)
        assert not store.exists(KEY)
        assert store.list("students") == [other]
        with pytest.raises(Missing):
            store.fetch_folder(KEY)
        assert verify(store.fetch_folder(other))
        if url.startswith("file://"):
            left = [path for path in Path(url.removeprefix("file://")).rglob("*") if path.is_file()]
            assert len(left) == 6
        store.delete(other)
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        assert files.find(root) == []

    def test_many_at_once(self, store: Store, url: str, tmp_path: Path) -> None:
        if url.startswith("memory:"):
            pytest.skip("fsspec's memory file system is not made for several threads")
        folders = [artifact(tmp_path / f"{number}", weights=bytes([number])) for number in range(3)]
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for round_ in range(3):
                    key = f"students/st_{number}_{round_}"
                    store.publish(folders[number], key)
                    store.publish(folders[0], "teachers/tc_shared")
                    assert verify(store.fetch_folder(key)).student_hash == read_manifest(folders[number]).student_hash
                    assert verify(store.fetch_folder("teachers/tc_shared"))
                    store.delete(key)
            except BaseException as error:  # noqa: BLE001 - told to the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert store.list("students") == []
        assert store.list("teachers") == ["teachers/tc_shared"]


class TestAFolderStore:
    def test_the_stored_folder_itself_is_given(self, tmp_path: Path) -> None:
        store = Store(f"file://{tmp_path / 'store'}", tmp_path / "cache")
        store.publish(artifact(tmp_path / "a"), KEY)
        assert store.fetch_folder(KEY) == tmp_path / "store" / KEY
        assert not (tmp_path / "cache").exists()

    def test_damage_after_the_first_open_is_found(self, tmp_path: Path) -> None:
        store = Store(f"file://{tmp_path / 'store'}", tmp_path / "cache")
        store.publish(artifact(tmp_path / "a"), KEY)
        weights = store.fetch_folder(KEY) / "model.safetensors"
        weights.write_bytes(b"Weights")
        with pytest.raises(ArtifactDamaged):
            store.fetch_folder(KEY)

    def test_an_open_costs_no_hashing_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store(f"file://{tmp_path / 'store'}", tmp_path / "cache")
        store.publish(artifact(tmp_path / "a"), KEY)
        store.fetch_folder(KEY)
        hashed: list[Path] = []
        real = artifacts.sha256
        monkeypatch.setattr(artifacts, "sha256", lambda path: hashed.append(path) or real(path))
        store.fetch_folder(KEY)
        assert hashed == []

    def test_two_who_publish_the_same_key_leave_one_whole_artifact(self, tmp_path: Path) -> None:
        folders = [artifact(tmp_path / str(number), weights=bytes([number])) for number in range(6)]
        outcomes: list[str] = []

        def work(folder: Path) -> None:
            try:
                Store(f"file://{tmp_path / 'store'}", tmp_path / "cache").publish(folder, KEY)
                outcomes.append("published")
            except Conflict:
                outcomes.append("conflict")

        threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["conflict"] * 5 + ["published"]
        assert verify(tmp_path / "store" / KEY)
        assert list((tmp_path / "store" / ".incoming").iterdir()) == []

    def test_a_full_disk_has_its_own_code_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(f"file://{tmp_path / 'store'}", tmp_path / "cache")
        folder = artifact(tmp_path / "a")

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", full)
            with pytest.raises(StorageFailure) as caught:
                store.publish(folder, KEY)
        assert caught.value.code == "storage_full"
        assert str(tmp_path) not in caught.value.message
        assert not store.exists(KEY)
        assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []

    def test_what_a_killed_process_left_is_tidied_up(self, tmp_path: Path) -> None:
        store = Store(f"file://{tmp_path / 'store'}", tmp_path / "cache")
        left = tmp_path / "store" / ".incoming" / "dead"
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
        store.tidy()
        assert left.exists()
        store.tidy(older_than=-1)
        assert not left.exists()


class TestARemoteStore:
    @pytest.fixture
    def remote(self, tmp_path: Path) -> tuple[Store, str]:
        url = f"memory://{uuid.uuid4().hex}"
        return Store(url, tmp_path / "cache"), url

    def test_an_upload_without_its_manifest_is_not_there(self, remote: tuple[Store, str], tmp_path: Path) -> None:
        store, url = remote
        store.publish(artifact(tmp_path / "a"), KEY)
        files, root = fsspec.core.url_to_fs(url)
        files.rm_file(f"{root}/{KEY}/{MANIFEST}")
        assert not store.exists(KEY)
        with pytest.raises(Missing):
            store.fetch_folder(KEY)
        store.delete(KEY)
        assert store.list("students") == []

    def test_damage_in_the_store_is_found(self, remote: tuple[Store, str], tmp_path: Path) -> None:
        store, url = remote
        store.publish(artifact(tmp_path / "a"), KEY)
        files, root = fsspec.core.url_to_fs(url)
        files.pipe_file(f"{root}/{KEY}/config.json", b"[]")
        with pytest.raises(ArtifactDamaged):
            store.fetch_folder(KEY)
        assert not (tmp_path / "cache" / KEY).exists()

    def test_damage_in_the_copy_is_repaired(self, remote: tuple[Store, str], tmp_path: Path) -> None:
        store, _ = remote
        store.publish(artifact(tmp_path / "a"), KEY)
        (store.fetch_folder(KEY) / "config.json").write_text("[]", "utf-8")
        assert verify(store.fetch_folder(KEY))

    def test_a_copy_serves_on_while_the_store_is_away(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Away(type(fsspec.filesystem("memory"))):  # type: ignore[misc]
            """A file system of fsspec that can be cut off."""

            protocol = "away"
            cut = False

            def cat_file(self, *arguments: object, **options: object) -> bytes:
                if Away.cut:
                    raise ConnectionError("no route")
                return bytes(super().cat_file(*arguments, **options))

        fsspec.register_implementation("away", Away, clobber=True)
        store = Store(f"away://{uuid.uuid4().hex}", tmp_path / "cache")
        store.publish(artifact(tmp_path / "a"), KEY)
        store.fetch_folder(KEY)
        monkeypatch.setattr(Away, "cut", True)
        assert verify(store.fetch_folder(KEY))
        with pytest.raises(StorageFailure):
            Store(f"away://{uuid.uuid4().hex}", tmp_path / "other").fetch_folder(KEY)

    def test_an_unknown_file_system_is_a_storage_failure(self, tmp_path: Path) -> None:
        with pytest.raises(StorageFailure):
            Store("nonsense://x", tmp_path)
