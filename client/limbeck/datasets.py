"""Datasets and uploaded teachers: what goes to the service as files."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic

import httpx2

from limbeck.errors import LimbeckError
from limbeck.objects import Dataset, Json, Page, Teacher, read
from limbeck.paging import every, page
from limbeck.transport import Transport, body
from limbeck.verbs import verb, walk
from limbeck.wires import W_co

_TYPES = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
}


class Datasets(Generic[W_co]):
    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def upload(
        self, path: Path | str, *, name: str | None = None, encoding: str | None = None, errors: str | None = None
    ) -> Dataset:
        """Upload a CSV, TSV, JSONL or Parquet file; it is streamed, so that its size does not matter here.

        `name`: default, the file's name. `encoding`: default, UTF-8 or what a byte order mark says. `errors` "replace"
        puts U+FFFD where bytes cannot be decoded; the default refuses such a file and names the line.
        """
        path = Path(path)
        fields = {"name": path.name if name is None else name, "encoding": encoding, "errors": errors}
        data = {field: value for field, value in fields.items() if value is not None}
        return read(Dataset, body(await _upload(self._transport, "/datasets", data, "file", [path])))

    @verb
    async def get(self, dataset: str | Dataset) -> Dataset:
        return read(Dataset, body(await self._transport.request("GET", f"/datasets/{_id(dataset)}")))

    @verb
    async def list(self, *, after: str | None = None, limit: int = 20) -> Page[Dataset]:
        """Newest first."""
        return await page(self._transport, "/datasets", Dataset, after=after, limit=limit)

    @walk
    def all(self) -> AsyncGenerator[Dataset]:
        """Every dataset, newest first, page by page."""
        return every(self._transport, "/datasets", Dataset)

    @verb
    async def rows(self, dataset: str | Dataset, *, limit: int = 20, offset: int = 0) -> "Page[Json]":
        """Some rows, each as `{column: value}`."""
        params = {"limit": limit, "offset": offset}
        document = body(await self._transport.request("GET", f"/datasets/{_id(dataset)}/rows", params=params))
        return Page(data=list(document["data"]), has_more=bool(document.get("has_more")), raw=document)

    @verb
    async def delete(self, dataset: str | Dataset) -> None:
        await self._transport.request("DELETE", f"/datasets/{_id(dataset)}")


class Teachers(Generic[W_co]):
    """Checkpoints of your own: safetensors weights with their config and tokenizer."""

    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def upload(self, folder: Path | str, *, name: str | None = None) -> Teacher:
        """Upload the files of a checkpoint's folder. A job then names it by the answer's `reference`."""
        own_name, files = await self._transport.wire.aside(partial(_checkpoint, Path(folder)))
        data = {"name": own_name if name is None else name}
        return read(Teacher, body(await _upload(self._transport, "/teachers", data, "files", files)))

    @verb
    async def get(self, teacher: str | Teacher) -> Teacher:
        return read(Teacher, body(await self._transport.request("GET", f"/teachers/{_id(teacher)}")))

    @verb
    async def list(self, *, after: str | None = None, limit: int = 20) -> Page[Teacher]:
        """Newest first."""
        return await page(self._transport, "/teachers", Teacher, after=after, limit=limit)

    @walk
    def all(self) -> AsyncGenerator[Teacher]:
        """Every uploaded teacher, newest first, page by page."""
        return every(self._transport, "/teachers", Teacher)

    @verb
    async def delete(self, teacher: str | Teacher) -> None:
        await self._transport.request("DELETE", f"/teachers/{_id(teacher)}")


def _id(item: str | Dataset | Teacher) -> str:
    return item if isinstance(item, str) else item.id


def _checkpoint(folder: Path) -> tuple[str, list[Path]]:
    """Its name, and the files that are sent of it."""
    if not folder.is_dir():
        raise LimbeckError(f"{folder} is not a folder", hint="give the folder with config.json and model.safetensors")
    # Pickled weights lie beside the safe ones in many folders. The service would refuse all for their sake.
    unsafe = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".ot"}
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.suffix not in unsafe
    ]
    return folder.resolve().name, files


async def _upload(
    transport: Transport[Any], path: str, data: dict[str, str], field: str, files: Sequence[Path]
) -> httpx2.Response:
    with ExitStack() as stack:
        opened = await transport.wire.aside(lambda: [stack.enter_context(_open(file)) for file in files])

        def build() -> httpx2.Request:
            parts: list[Any] = []
            for file, stream in zip(files, opened, strict=True):
                stream.seek(0)
                kind = _TYPES.get(file.suffix.lower(), "application/octet-stream")
                parts.append((field, (file.name, stream, kind)))
            request: httpx2.Request = transport.wire.build("POST", path, data=data, files=parts)
            return request

        def whole() -> bool:
            """The last file has been read to its end, and may have left."""
            return not opened or opened[-1].tell() >= files[-1].stat().st_size

        return await transport.send(build, idempotent=False, whole=whole)


def _open(file: Path) -> BinaryIO:
    if not file.is_file():
        raise LimbeckError(f"there is no file {str(file)!r}")
    try:
        return file.open("rb")
    except OSError as error:
        raise LimbeckError(f"{error.filename} cannot be read: {error.strerror}") from error
