"""Students: what is known of one, and a verified copy of its files."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2

from limbeck.errors import DownloadDamaged, LimbeckError, ServiceUnreachable
from limbeck.objects import File, Json, Page, Student, read
from limbeck.paging import every, page
from limbeck.transport import Transport, body

MANIFEST = "manifest.json"
# Plain names only: "..", absolute paths and drive letters are never published, and we would never write them.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class Students:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, student: str | Student) -> Student:
        return read(Student, body(self._transport.request("GET", f"/students/{_id(student)}")))

    def list(self, *, name: str | None = None, after: str | None = None, limit: int = 20) -> Page[Student]:
        """Newest first."""
        return page(self._transport, "/students", Student, name=name, after=after, limit=limit)

    def all(self) -> Iterator[Student]:
        """Every student, newest first, page by page."""
        return every(lambda after: self.list(after=after, limit=100))

    def report(self, student: str | Student) -> Json:
        """The report: arms, comparisons, gate and verdict, as the documentation describes them."""
        document = body(self._transport.request("GET", f"/students/{_id(student)}/report"))
        return dict(document)

    def files(self, student: str | Student) -> Sequence[File]:
        """Every file but `manifest.json`, which lists them too."""
        return page(self._transport, f"/students/{_id(student)}/files", File).data

    def download(
        self,
        student: str | Student,
        folder: Path | str,
        *,
        on_file: Callable[[File, bool], None] | None = None,
    ) -> Path:
        """Copy the whole artifact into `folder` and check the SHA-256 of every file. Returns the folder.

        A file that is there already and matches is left as it is, so that a download that broke goes on. `on_file` is
        called for each file when it is there, with True if it was fetched. Raises `DownloadDamaged`.
        """
        folder = Path(folder)
        for file in self.files(student):
            if not _PLAIN.fullmatch(file.path):
                raise LimbeckError(f"the service names a file {file.path!r}, which is not written anywhere")
            target = folder / file.path
            fetched = not (target.is_file() and target.stat().st_size == file.size and _sha256(target) == file.sha256)
            if fetched:
                self._fetch(_id(student), file.path, target, file.sha256)
            if on_file:
                on_file(file, fetched)
        # Last, as the service publishes it: a folder with a manifest is complete.
        self._fetch(_id(student), MANIFEST, folder / MANIFEST, None)
        return folder

    def delete(self, student: str | Student) -> None:
        self._transport.request("DELETE", f"/students/{_id(student)}")

    def _fetch(self, student_id: str, path: str, target: Path, sha256: str | None) -> None:
        part = target.with_name(target.name + ".part")
        digest = hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._transport.stream(f"/students/{student_id}/files/{path}", read_timeout=60) as response:
                expected = sha256 or response.headers.get("etag", "").strip('"') or None
                with part.open("wb") as file:
                    for chunk in response.iter_bytes(1 << 18):
                        digest.update(chunk)
                        file.write(chunk)
            if expected is not None and digest.hexdigest() != expected:
                raise DownloadDamaged(f"{path} does not match its SHA-256", hint="download it again")
            part.replace(target)
        except OSError as error:
            raise LimbeckError(f"{target} cannot be written: {error.strerror or error}") from error
        except httpx2.TransportError as error:
            raise ServiceUnreachable(f"the download of {path} broke", hint="download again: it goes on") from error
        finally:
            part.unlink(missing_ok=True)


def _id(student: str | Student) -> str:
    return student if isinstance(student, str) else student.id


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
