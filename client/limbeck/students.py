"""Students: what is known of one, and a verified copy of its files."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Generic

from limbeck import hub
from limbeck.errors import LimbeckError
from limbeck.objects import Disagreement, Economics, File, Json, Page, Report, Student, Verification, read
from limbeck.paging import every, page
from limbeck.predictions import Trial, body_of, trial_of
from limbeck.saving import fetch
from limbeck.transport import Transport, body
from limbeck.verbs import verb, walk
from limbeck.verifying import MANIFEST, PLAIN, sha256, verify_folder
from limbeck.wires import W_co

_PATIENCE = 600.0  # the service reads every file before it answers


class Students(Generic[W_co]):
    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def get(self, student: str | Student) -> Student:
        return read(Student, body(await self._transport.request("GET", f"/students/{_id(student)}")))

    @verb
    async def list(self, *, name: str | None = None, after: str | None = None, limit: int = 20) -> Page[Student]:
        """Newest first."""
        return await page(self._transport, "/students", Student, name=name, after=after, limit=limit)

    @walk
    def all(self, *, name: str | None = None) -> AsyncGenerator[Student]:
        """Every student, newest first, page by page."""
        return every(self._transport, "/students", Student, name=name)

    @verb
    async def report(self, student: str | Student) -> Report:
        """The report: arms, comparisons, gate and verdict, as the documentation describes them."""
        document = body(await self._transport.request("GET", f"/students/{_id(student)}/report"))
        return Report(document)

    @verb
    async def disagreements(
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
        return await page(self._transport, path, Disagreement, right=right, truth=truth, after=after, limit=limit)

    @verb
    async def economics(
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
        response = await self._transport.request("GET", f"/students/{_id(student)}/economics", params=given)
        return read(Economics, body(response))

    @verb
    async def files(self, student: str | Student) -> Sequence[File]:
        """Every file but `manifest.json`, which lists them too."""
        return (await page(self._transport, f"/students/{_id(student)}/files", File)).data

    @verb
    async def manifest(self, student: str | Student) -> Json:
        """The manifest: where it comes from, and the SHA-256 of every file."""
        response = await self._transport.request("GET", f"/students/{_id(student)}/files/{MANIFEST}")
        return dict(body(response))

    @verb
    async def predict(
        self,
        student: str | Student,
        inputs: Sequence[str | Mapping[str, str]],
        *,
        teacher: bool = True,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        aggregation_strategy: str | None = None,
    ) -> Trial:
        """What a student, deployed or not, says to at most 32 inputs, and its teacher: for looking, not for production.

        Inputs and parameters are those of `client.predict`.
        """
        document = body_of(list(inputs), top_k, function_to_apply, aggregation_strategy)
        path = f"/students/{_id(student)}/predict"
        asked = {"teacher": "true" if teacher else "false"}
        return trial_of(body(await self._transport.request("POST", path, json=document, params=asked, idempotent=True)))

    @verb
    async def card(self, student: str | Student) -> str:
        """The model card, as Markdown. 404 where it was published before there were cards."""
        return (await self._transport.request("GET", f"/students/{_id(student)}/files/{hub.CARD}")).text

    @verb
    async def verify(self, student: str | Student | Path) -> Verification:
        """Whether every file is the one that was published: in the service's store, or in the folder of this `Path`.

        The service reads all files again; of a folder nobody is asked.
        """
        if isinstance(student, Path):
            return await self._transport.wire.aside(partial(verify_folder, student))
        response = await self._transport.request(
            "POST", f"/students/{_id(student)}/verify", idempotent=True, read_timeout=_PATIENCE
        )
        return read(Verification, body(response))

    @verb
    async def download(
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
        for file in await Students.files(self, student):
            if not PLAIN.fullmatch(file.path):
                raise LimbeckError(f"the service names a file {file.path!r}, which is not written anywhere")
            target = folder / file.path
            fetched = not await self._transport.wire.aside(partial(_is_there, target, file))
            if fetched:
                await self._fetch(student, file.path, target, file.sha256)
            if on_file:
                on_file(file, fetched)
        # Last, as the service publishes it: a folder with a manifest is complete.
        await self._fetch(student, MANIFEST, folder / MANIFEST, None)
        return folder

    @verb
    async def export(self, student: str | Student, folder: Path | str, choices: hub.Choices | None = None) -> Json:
        """Download it as a folder that the Hugging Face Hub takes. Returns the metadata of its card."""
        folder = Path(folder)
        await self._transport.wire.aside(partial(hub.refuse_foreign, folder))
        await Students.download(self, student, folder)
        return await self._transport.wire.aside(partial(hub.arrange, folder, choices or hub.Choices()))

    @verb
    async def delete(self, student: str | Student) -> None:
        await self._transport.request("DELETE", f"/students/{_id(student)}")

    async def _fetch(self, student: str | Student, path: str, target: Path, known: str | None) -> None:
        await fetch(self._transport, f"/students/{_id(student)}/files/{path}", target, read_timeout=60, sha256=known)


def _is_there(target: Path, file: File) -> bool:
    return target.is_file() and target.stat().st_size == file.size and sha256(target) == file.sha256


def _id(student: str | Student) -> str:
    return student if isinstance(student, str) else student.id
