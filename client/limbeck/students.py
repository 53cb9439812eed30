"""Students: what is known of one, and a verified copy of its files."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2

from limbeck.errors import DownloadDamaged, LimbeckError, ServiceUnreachable
from limbeck.objects import Disagreement, Economics, File, Json, Page, Student, Verification, read
from limbeck.paging import every, page
from limbeck.transport import Transport, body
from limbeck.verifying import MANIFEST, PLAIN, sha256, verify_folder

_PATIENCE = 600.0  # the service reads every file before it answers


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

    def disagreements(
        self,
        student: str | Student,
        *,
        right: str | None = None,
        truth: str | None = None,
        after: int | None = None,
        limit: int = 20,
    ) -> Page[Disagreement]:
        """The test rows on which it and its teacher differ, those first on which both were surest.

        `right`: only those that teacher, student, both or neither got right. `truth`: only those with this label, tag
        or answer. `after`: the `row` of the last one of the page before. The code is `no_disagreements` where the
        artifact has none.
        """
        path = f"/students/{_id(student)}/disagreements"
        return page(self._transport, path, Disagreement, right=right, truth=truth, after=after, limit=limit)

    def economics(
        self,
        student: str | Student,
        *,
        calls_per_month: float,
        host_cost_per_month: float,
        price_per_call: float | None = None,
        price_per_1k_tokens: float | None = None,
        tokens_per_call: float | None = None,
        training_cost: float | None = None,
        fallback_coverage: float | None = None,
    ) -> Economics:
        """What it saves against its teacher's API, and from when on, in the currency of the prices.

        Give `price_per_call`, or `price_per_1k_tokens` with `tokens_per_call`. `training_cost` defaults to what the
        host costs for the job's time. `fallback_coverage`: the share of the calls that the student answers itself
        (default 1); the others are paid at the teacher's price.
        """
        wanted = {
            "calls_per_month": calls_per_month,
            "host_cost_per_month": host_cost_per_month,
            "price_per_call": price_per_call,
            "price_per_1k_tokens": price_per_1k_tokens,
            "tokens_per_call": tokens_per_call,
            "training_cost": training_cost,
            "fallback_coverage": fallback_coverage,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        response = self._transport.request("GET", f"/students/{_id(student)}/economics", params=given)
        return read(Economics, body(response))

    def files(self, student: str | Student) -> Sequence[File]:
        """Every file but `manifest.json`, which lists them too."""
        return page(self._transport, f"/students/{_id(student)}/files", File).data

    def manifest(self, student: str | Student) -> Json:
        """The manifest: where it comes from, and the SHA-256 of every file."""
        response = self._transport.request("GET", f"/students/{_id(student)}/files/{MANIFEST}")
        return dict(body(response))

    def verify(self, student: str | Student | Path) -> Verification:
        """Whether every file is the one that was published: in the service's store, or in the folder of this `Path`.

        The service reads all files again; of a folder nobody is asked.
        """
        if isinstance(student, Path):
            return verify_folder(student)
        response = self._transport.request(
            "POST", f"/students/{_id(student)}/verify", idempotent=True, read_timeout=_PATIENCE
        )
        return read(Verification, body(response))

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
            if not PLAIN.fullmatch(file.path):
                raise LimbeckError(f"the service names a file {file.path!r}, which is not written anywhere")
            target = folder / file.path
            fetched = not (target.is_file() and target.stat().st_size == file.size and sha256(target) == file.sha256)
            if fetched:
                self._fetch(_id(student), file.path, target, file.sha256)
            if on_file:
                on_file(file, fetched)
        # Last, as the service publishes it: a folder with a manifest is complete.
        self._fetch(_id(student), MANIFEST, folder / MANIFEST, None)
        return folder

    def delete(self, student: str | Student) -> None:
        self._transport.request("DELETE", f"/students/{_id(student)}")

    def _fetch(self, student_id: str, path: str, target: Path, known: str | None) -> None:
        part = target.with_name(target.name + ".part")
        digest = hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._transport.stream(f"/students/{student_id}/files/{path}", read_timeout=60) as response:
                expected = known or response.headers.get("etag", "").strip('"') or None
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
