"""Artifacts: folders and files that never change, their manifests, and the store that keeps them.

An artifact folder is finished by `write_manifest`, which hashes every file in it, and is opened only after `verify`
has found each file as its manifest says. `Store` keeps artifacts under keys (`students/st_…`, `teachers/tc_…`,
`datasets/ds_….parquet`) in a folder or, by fsspec, in an object store. A reader sees all of an artifact or nothing:

    a folder        files are copied beside it, synced, and appear by one rename
    object store    the manifest is uploaded last and deleted first, and without a manifest there is no artifact

No path is made from a user's text: keys are checked against a grammar, and a file inside of an artifact is found only
by the exact name that its manifest has for it. Symbolic links are refused. This module knows neither the database,
which says what is visible, nor what is in the files.
"""

import errno
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from models.errors import ArtifactDamaged, Conflict, Invalid, LimbeckError, Missing, StorageFailure
from models.places import INCOMING, MANIFEST, Folder, Place, Remote, appear, incoming, remove, sync

Precision = Literal["fp32", "int8"]
LOSS_CONVENTION: Literal[1] = 1
"""How losses are scaled and averaged; another number trains another student from the same spec."""

# What makes two students the same student: the rest of a folder follows from these, or holds timings.
_IDENTITY = re.compile(
    r"config\.json|.*\.safetensors|.*\.safetensors\.index\.json"
    r"|tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(?:txt|json)|merges\.txt|.*\.model"
)
_KEY = re.compile(r"[a-z]{1,32}/[A-Za-z0-9_][A-Za-z0-9_-]{0,99}(?:\.[a-z0-9]{1,16})?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,199}){0,8}")
_UNREADABLE = {errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK = 1 << 20


# --- manifests --------------------------------------------------------------------------------------------------------


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int
    """Bytes."""


class Origin(BaseModel):
    """A teacher that a student learned from, or a checkpoint that its weights began as."""

    model_config = ConfigDict(frozen=True)

    reference: str
    """As the spec names it; of recorded answers their column."""
    identity: str
    """SHA-256 over what taught: weights, config, tokenizer and labels, after any fine-tuning; empty: recorded."""
    checkpoint: str | None = None
    """SHA-256 over the files as they were found, before any training; None: it has none, or was trained here."""
    license: str | None = None
    """As its source writes it; None: unknown."""
    license_source: str | None = None
    """Where that was found: README.md, config.json, the name of a licence's file, package metadata, manifest.json."""


class Manifest(BaseModel):
    """What an artifact is, where it came from, and every file of it but `manifest.json` itself."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    kind: Literal["student", "teacher"]
    student_hash: str
    """SHA-256 over the names and hashes of weights, config and tokenizer: equal students have equal ones."""
    loss_convention: Literal[1] = LOSS_CONVENTION
    task: str | None = None
    labels: list[str] = []
    """In the order of the logits."""
    max_length: int | None = None
    """Tokens of one text, special tokens included."""
    precision: Precision = "fp32"
    """The precision that is served."""
    spec: dict[str, JsonValue] = {}
    """The resolved spec of the job."""
    data: dict[str, str] = {}
    """SHA-256 of each split that was used."""
    teachers: list[Origin] = []
    bases: list[Origin] = []
    """Checkpoints beside the teachers that the student's weights began as."""
    seeds: dict[str, int] = {}
    versions: dict[str, str] = {}
    hardware: dict[str, JsonValue] = {}
    """What it was trained on: `{"device", "cpu", "cores", "threads", "gpu"}`."""
    created_at: datetime
    files: dict[str, FileEntry]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def entry(self, name: str) -> FileEntry:
        """The file that is named exactly so. Raises `Missing`."""
        if name not in self.files:
            raise Missing("this artifact has no such file", code="file_not_found")
        return self.files[name]


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(
    folder: Path,
    *,
    kind: Literal["student", "teacher"],
    task: str | None = None,
    labels: Sequence[str] = (),
    max_length: int | None = None,
    precision: Precision = "fp32",
    spec: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | None = None,
    teachers: Sequence[Origin] = (),
    bases: Sequence[Origin] = (),
    seeds: Mapping[str, int] | None = None,
    versions: Mapping[str, str] | None = None,
    hardware: Mapping[str, JsonValue] | None = None,
) -> Manifest:
    """Hash every file below `folder`, sync them, and write `manifest.json`: the last file of an artifact.

    Raises `StorageFailure`; a symbolic link or a name that no artifact may have is `ArtifactDamaged`.
    """
    with _told("the artifact's folder"):
        files = {}
        for name in _names(folder):
            path = folder / name
            sync(path)
            files[name] = FileEntry(sha256=sha256(path), size=path.stat().st_size)
        manifest = Manifest(
            kind=kind,
            student_hash=student_hash({name: entry.sha256 for name, entry in files.items()}),
            task=task,
            labels=list(labels),
            max_length=max_length,
            precision=precision,
            spec=dict(spec or {}),
            data=dict(data or {}),
            teachers=list(teachers),
            bases=list(bases),
            seeds=dict(seeds or {}),
            versions=dict(versions or {}),
            hardware=dict(hardware or {}),
            created_at=datetime.now(UTC),
            files=files,
        )
        temporary = folder / f".{MANIFEST}.{uuid.uuid4().hex}"
        temporary.write_text(manifest.model_dump_json(indent=1), "utf-8")
        sync(temporary)
        temporary.replace(folder / MANIFEST)
        sync(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, not compared with its files. Raises `ArtifactDamaged`."""
    try:
        return _parse((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise ArtifactDamaged("the artifact has no readable manifest", code="artifact_damaged") from error


def verify(folder: Path) -> Manifest:
    """The manifest of `folder`, after finding every file as the manifest says and no file that it does not name.

    Raises `ArtifactDamaged` with the name of the first file that is wrong.
    """
    manifest = read_manifest(folder)
    with _told("the artifact's folder"):
        present = set(_names(folder))
        for name, entry in manifest.files.items():
            if name not in present:
                raise ArtifactDamaged(f"{name} is missing from the artifact")
            path = folder / name
            if path.stat().st_size != entry.size or sha256(path) != entry.sha256:
                raise ArtifactDamaged(f"{name} is not the file that its manifest describes")
        for name in present - set(manifest.files):
            raise ArtifactDamaged(f"{name} is not in the artifact's manifest")
    return manifest


def _parse(document: bytes) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(document)
    except ValidationError as error:
        raise ArtifactDamaged("the artifact's manifest cannot be read") from error
    for name in manifest.files:
        _check_name(name)
    return manifest


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name == MANIFEST:
        raise ArtifactDamaged(f"{name[:80]!r} is not a name that a file of an artifact may have")


def _names(folder: Path) -> list[str]:
    """The files below `folder` but its manifest, in order; names that begin with a dot are not the artifact's."""
    names = []
    for root, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(root, name)
            if name.startswith("."):
                continue
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ArtifactDamaged(f"{name[:80]!r} is a link or a device, which an artifact may not hold")
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [Path(root, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    names = sorted(name for name in names if name != MANIFEST)
    for name in names:
        _check_name(name)
    return names


def student_hash(hashes: Mapping[str, str]) -> str:
    """SHA-256 over the names and hashes of weights, config and tokenizer among `hashes`, the SHA-256 of each file."""
    lines = [f"{name}\0{hashes[name]}\n" for name in sorted(hashes) if _IDENTITY.fullmatch(name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class FileCheck:
    """How a stored file compares with a manifest. `sha256` is the one found, `problem` None where all is well."""

    path: str
    sha256: str | None
    problem: str | None = None


# --- the store --------------------------------------------------------------------------------------------------------


class Store:
    """Artifacts under keys. Several threads and processes may use one store at once, on one machine or on many.

    `url` is an fsspec URL: `file:///folder`, `s3://bucket/prefix`, … Credentials and endpoints come from where that
    file system looks for them (for S3 the `AWS_*` variables). `local_cache` is a folder for downloads; a store that
    is a folder does not use it. Every verb raises `StorageFailure` (code `storage_full` when there is no space) when
    the store refuses or cannot be reached.
    """

    def __init__(self, url: str, local_cache: Path) -> None:
        self._cache = local_cache
        self._verified: dict[Path, tuple[object, Manifest]] = {}
        self._lock = threading.Lock()
        with _told("the artifact store"):
            if url.startswith("file://") or "://" not in url:
                self._place: Place = Folder(Path(url.removeprefix("file://")))
            else:
                self._place = Remote(url)

    def put_file(self, local: Path, key: str) -> None:
        """Keep a copy of the file `local` under `key`, in place of any that is there."""
        _check_key(key)
        with _told(key):
            if local.is_symlink() or not local.is_file():
                raise StorageFailure("only a regular file can be stored")
            self._place.put_file(local, key)

    def fetch_file(self, key: str, *, sha256: str | None = None) -> Path:
        """The file under `key` on this machine, which the caller only reads.

        Raises `Missing`, or `ArtifactDamaged` where `sha256` is given and is not the file's.
        """
        _check_key(key)
        with _told(key):
            path = self._place.path(key)
            if path is None:
                path = self._download(key)
            if not path.is_file():
                _missing()
            if sha256 is not None:
                self._check_file(path, sha256)
        return path

    def publish(self, folder: Path, key: str) -> Manifest:
        """Keep the finished artifact `folder` under `key`. Verifies it first, and copies what its manifest names.

        To publish the same artifact again changes nothing; another one under the same key is a `Conflict`.
        """
        _check_key(key)
        manifest = verify(folder)
        document = (folder / MANIFEST).read_bytes()
        with _told(key):
            there = self._read_manifest(key)
            if there is None and not self._place.put_folder(folder, (*manifest.files, MANIFEST), key, verify):
                there = self._read_manifest(key)  # somebody else was faster
            if there is not None and there != document:
                raise Conflict("there is another artifact under this key", code="artifact_exists")
        return manifest

    def manifest(self, key: str) -> Manifest:
        """The manifest of the artifact under `key`; its files are not looked at. Raises `Missing`."""
        _check_key(key)
        with _told(key):
            document = self._read_manifest(key)
        return _parse(_missing() if document is None else document)

    def fetch_folder(self, key: str) -> Path:
        """The verified artifact under `key` as a folder on this machine, which the caller only reads.

        A folder is hashed once per process, and again when the size or time of one of its files has changed. Where the
        store is remote, a copy is kept, and serves on while the store cannot be reached: artifacts never change.
        Raises `Missing`, `ArtifactDamaged`.
        """
        _check_key(key)
        path = self._place.path(key)
        if path is not None:
            if not (path / MANIFEST).is_file():
                _missing()
            self._verify_once(path)
            return path
        copy = self._cache / key
        try:
            with _told(key):
                document = self._read_manifest(key)
        except StorageFailure:
            if (copy / MANIFEST).is_file():
                self._verify_once(copy)
                return copy
            raise
        if document is None:
            _missing()
        with _told(key):
            self._copy_folder(key, document, copy)
        return copy

    def open_file(self, key: str, name: str) -> tuple[BinaryIO, FileEntry]:
        """One file of the artifact under `key`, open for reading, and its entry; `name` is exactly as in the manifest.

        `manifest.json` itself may be opened too. The caller closes the file. Raises `Missing`.
        """
        _check_key(key)
        with _told(key):
            document = self._read_manifest(key)
            if document is None:
                _missing()
            if name == MANIFEST:
                entry = FileEntry(sha256=hashlib.sha256(document).hexdigest(), size=len(document))
            else:
                entry = _parse(document).entry(name)
            return self._place.open(f"{key}/{name}"), entry

    def inspect(self, key: str, manifest: Manifest) -> list[FileCheck]:
        """Read every file under `key` from the store itself, past all caches, and compare it with `manifest`.

        A file that is missing, damaged, or unknown to `manifest` is in the list with its problem; nothing is raised for
        it. The stored manifest.json is compared too.
        """
        _check_key(key)
        with _told(key):
            found = [self._inspect_file(key, name, entry) for name, entry in sorted(manifest.files.items())]
            document = self._read_manifest(key)
            unknown = sorted(set(self._place.names(key)) - {*manifest.files, MANIFEST})
        found += [FileCheck(name, None, "is not in the manifest") for name in unknown]
        return [*found, _check_manifest(document, manifest)]

    def _inspect_file(self, key: str, name: str, entry: FileEntry) -> FileCheck:
        found = hashlib.sha256()
        try:
            with self._place.open(f"{key}/{name}") as stream:
                while chunk := stream.read(_CHUNK):
                    found.update(chunk)
        except FileNotFoundError:
            return FileCheck(name, None, "is missing")
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return FileCheck(name, None, "is there and cannot be read")
        digest = found.hexdigest()
        return FileCheck(name, digest, None if digest == entry.sha256 else "is not the file that was published")

    def exists(self, key: str) -> bool:
        """Whether there is a whole artifact, or a file, under `key`."""
        _check_key(key)
        with _told(key):
            return self._place.exists(f"{key}/{MANIFEST}") or self._place.is_file(key)

    def list(self, prefix: str) -> list[str]:
        """The keys below `prefix` (`students`, `teachers`, `datasets`), in order, also of what was not put whole."""
        prefix = prefix.rstrip("/")
        if not re.fullmatch(r"[a-z]{1,32}", prefix):
            raise Invalid("this is not a prefix of keys", code="bad_key")
        with _told(prefix):
            names = self._place.list(prefix)
        return [key for key in (f"{prefix}/{name}" for name in sorted(names)) if _KEY.fullmatch(key)]

    def delete(self, key: str) -> None:
        """Leave nothing under `key`, here and in the cache. To delete what is absent is no error."""
        _check_key(key)
        with _told(key):
            self._place.delete(key)
            remove(self._cache / key)
        with self._lock:
            for path in [path for path in self._verified if path.as_posix().endswith(f"/{key}")]:
                del self._verified[path]

    def tidy(self, older_than: float = 24 * 3600.0) -> None:
        """Remove what killed processes left half-written more than `older_than` seconds ago."""
        with _told("the artifact store"):
            for folder in (self._place.path(INCOMING), self._cache / INCOMING):
                for left in folder.iterdir() if folder is not None and folder.is_dir() else ():
                    if time.time() - left.lstat().st_mtime > older_than:
                        remove(left)

    def _read_manifest(self, key: str) -> bytes | None:
        try:
            return self._place.read(f"{key}/{MANIFEST}")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _verify_once(self, folder: Path) -> Manifest:
        with self._lock:
            known = self._verified.get(folder)
        if known is not None and known[0] == _stamp(folder, known[1]):
            return known[1]
        manifest = verify(folder)
        with self._lock:
            self._verified[folder] = (_stamp(folder, manifest), manifest)
        return manifest

    def _check_file(self, path: Path, expected: str) -> None:
        if sha256(path) != expected:
            if self._place.path("") is None:
                path.unlink(missing_ok=True)  # our own copy: the next call downloads it again
            raise ArtifactDamaged("the stored file is not the one that was stored")

    def _download(self, key: str) -> Path:
        copy = self._cache / key
        size = self._place.size(key)
        if not copy.is_file() or copy.stat().st_size != size:
            with incoming(self._cache) as temporary:
                self._place.get(key, temporary / "file")
                appear(temporary / "file", copy)
        return copy

    def _copy_folder(self, key: str, document: bytes, copy: Path) -> None:
        if (copy / MANIFEST).is_file() and (copy / MANIFEST).read_bytes() == document:
            try:
                self._verify_once(copy)
            except ArtifactDamaged:
                pass  # our own copy is damaged, not the artifact: fetch it again
            else:
                return
        remove(copy)
        with incoming(self._cache) as temporary:
            for name in _parse(document).files:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                self._place.get(f"{key}/{name}", temporary / name)
            (temporary / MANIFEST).write_bytes(document)
            verify(temporary)
            appear(temporary, copy)
        self._verify_once(copy)


def _check_manifest(document: bytes | None, expected: Manifest) -> FileCheck:
    if document is None:
        return FileCheck(MANIFEST, None, "is missing")
    try:
        same = _parse(document) == expected
    except ArtifactDamaged:
        same = False
    digest = hashlib.sha256(document).hexdigest()
    return FileCheck(MANIFEST, digest, None if same else "is not the manifest that was published")


# --- files ------------------------------------------------------------------------------------------------------------


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise Invalid("this is not a key of the artifact store", code="bad_key")


def _missing() -> NoReturn:
    raise Missing("there is no such artifact", code="artifact_not_found")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """File systems' errors as ours. The sentences name keys and never a path, for they reach the API."""
    try:
        yield
    except LimbeckError:
        raise
    except FileNotFoundError as error:
        raise Missing("there is no such artifact", code="artifact_not_found") from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFailure(
                f"there is no space left for {what}", code="storage_full", hint="free some space, then try again"
            ) from error
        raise StorageFailure(f"the artifact store refused {what}: {os.strerror(error.errno or errno.EIO)}") from error
    except Exception as error:  # each of fsspec's file systems has a tree of errors of its own
        raise StorageFailure(f"the artifact store cannot be reached for {what}") from error


def _stamp(folder: Path, manifest: Manifest) -> object:
    """Changes when a file does; an absent file is None and fits nothing."""
    try:
        stats = [(folder / name).lstat() for name in (*manifest.files, MANIFEST)]
    except OSError:
        return None
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
