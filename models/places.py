"""Where artifacts lie: a folder, or by fsspec an object store. Keys in, bytes out; what they mean is not known here.

Whoever reads sees all of an artifact or nothing:

    a folder        files are copied beside it, synced, and appear by one rename
    object store    the manifest is uploaded last and deleted first, and without a manifest there is no artifact

Errors are those of the file system; an absent key is FileNotFoundError.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import fsspec

MANIFEST = "manifest.json"
"""The file that makes a folder an artifact."""
INCOMING = ".incoming"
"""The folder in which the next ones are put together."""


class Place(Protocol):
    """Where keys lie. Errors are those of the file system; an absent key is FileNotFoundError."""

    def path(self, key: str) -> Path | None:
        """Where `key` lies on this machine; None where the place is elsewhere."""

    def put_file(self, local: Path, key: str) -> None: ...
    def put_folder(self, folder: Path, names: Sequence[str], key: str, check: Callable[[Path], object]) -> bool:
        """Put `names`, in order. False where something was under `key` already.

        `check` is called with the copy before it appears, where the place can hold it back until then.
        """

    def read(self, key: str) -> bytes: ...
    def open(self, key: str) -> BinaryIO: ...
    def get(self, key: str, local: Path) -> None: ...
    def size(self, key: str) -> int: ...
    def exists(self, key: str) -> bool: ...
    def is_file(self, key: str) -> bool: ...
    def names(self, key: str) -> list[str]:
        """Of the files below `key`, none of whose names begins with a dot."""

    def list(self, prefix: str) -> list[str]: ...
    def delete(self, key: str) -> None: ...


class Folder:
    """A folder of this machine, or one that several machines mount."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def path(self, key: str) -> Path | None:
        return self._root / key

    def put_file(self, local: Path, key: str) -> None:
        with incoming(self._root) as temporary:
            shutil.copyfile(local, temporary / "file")
            appear(temporary / "file", self._root / key)

    def put_folder(self, folder: Path, names: Sequence[str], key: str, check: Callable[[Path], object]) -> bool:
        with incoming(self._root) as temporary:
            for name in names:
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, target, follow_symlinks=False)
            check(temporary)
            return appear(temporary, self._root / key)

    def read(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def open(self, key: str) -> BinaryIO:
        return os.fdopen(os.open(self._root / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")

    def get(self, key: str, local: Path) -> None:
        shutil.copyfile(self._root / key, local, follow_symlinks=False)

    def size(self, key: str) -> int:
        return (self._root / key).stat().st_size

    def exists(self, key: str) -> bool:
        return (self._root / key).exists()

    def is_file(self, key: str) -> bool:
        return (self._root / key).is_file()

    def names(self, key: str) -> list[str]:
        folder = self._root / key
        return [
            Path(root, name).relative_to(folder).as_posix()
            for root, _, files in os.walk(folder)
            for name in files
            if not name.startswith(".")
        ]

    def list(self, prefix: str) -> list[str]:
        folder = self._root / prefix
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def delete(self, key: str) -> None:
        # Out of sight by one rename first, so that no reader meets half of it.
        with incoming(self._root) as temporary:
            try:
                (self._root / key).rename(temporary / "gone")
            except FileNotFoundError:
                return


class Remote:
    """An object store. It has no rename: the manifest, written last and deleted first, says that the rest is there."""

    def __init__(self, url: str) -> None:
        # Another process changes what is there, so listings must not be remembered.
        self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        self._root = str(root).rstrip("/")

    def path(self, key: str) -> Path | None:  # noqa: ARG002 - nothing of an object store lies here
        return None

    def put_file(self, local: Path, key: str) -> None:
        self._make_parent(key)
        self._files.put_file(str(local), self._at(key))

    def put_folder(self, folder: Path, names: Sequence[str], key: str, check: Callable[[Path], object]) -> bool:  # noqa: ARG002
        for name in names:
            self.put_file(folder / name, f"{key}/{name}")
        return True

    def read(self, key: str) -> bytes:
        return cast("bytes", self._files.cat_file(self._at(key)))

    def open(self, key: str) -> BinaryIO:
        return cast("BinaryIO", self._files.open(self._at(key), "rb"))

    def get(self, key: str, local: Path) -> None:
        self._files.get_file(self._at(key), str(local))

    def size(self, key: str) -> int:
        return int(self._files.info(self._at(key))["size"])

    def exists(self, key: str) -> bool:
        return bool(self._files.exists(self._at(key)))

    def is_file(self, key: str) -> bool:
        return bool(self._files.isfile(self._at(key)))

    def names(self, key: str) -> list[str]:
        at = self._at(key).strip("/")
        paths = (str(path).strip("/").removeprefix(f"{at}/") for path in self._files.find(self._at(key)))
        return [path for path in paths if not path.rsplit("/", 1)[-1].startswith(".")]

    def list(self, prefix: str) -> list[str]:
        try:
            paths = self._files.ls(self._at(prefix), detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths]

    def delete(self, key: str) -> None:
        at = self._at(key)
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{at}/{MANIFEST}")
        with suppress(FileNotFoundError):
            self._files.rm(at, recursive=True)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _make_parent(self, key: str) -> None:
        """Some file systems of fsspec have folders; in an object store this is nothing."""
        self._files.makedirs(self._at(key).rsplit("/", 1)[0], exist_ok=True)


# --- files on this machine --------------------------------------------------------------------------------------------


@contextmanager
def incoming(root: Path) -> Iterator[Path]:
    """A new empty folder on the file system of `root`, removed at the end unless it was moved to its place."""
    temporary = root / INCOMING / uuid.uuid4().hex
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        remove(temporary)


def appear(temporary: Path, target: Path) -> bool:
    """Sync a file or folder and rename it to its place. False where a folder stands there already."""
    if temporary.is_dir():
        for root, _, files in os.walk(temporary, topdown=False):
            for name in files:
                sync(Path(root, name))
            sync(Path(root))
    else:
        sync(temporary)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            return False
        raise
    sync(target.parent)
    return True


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=False)
    else:
        path.unlink(missing_ok=True)
