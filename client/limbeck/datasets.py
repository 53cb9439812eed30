"""Datasets and uploaded teachers: what goes to the service as files."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2

from limbeck.errors import LimbeckError
from limbeck.objects import Dataset, Json, Page, Teacher, read
from limbeck.paging import every, page
from limbeck.transport import Transport, body

_TYPES = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
}


class Datasets:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self, path: Path | str, *, name: str | None = None, encoding: str | None = None, errors: str | None = None
    ) -> Dataset:
        """Upload a CSV, TSV, JSONL or Parquet file; it is streamed, so that its size does not matter here.

        `name`: default, the file's name. `encoding`: default, UTF-8 or what a byte order mark says. `errors` "replace"
        puts U+FFFD where bytes cannot be decoded; the default refuses such a file and names the line.
        """
        path = Path(path)
        fields = {"name": path.name if name is None else name, "encoding": encoding, "errors": errors}
        data = {field: value for field, value in fields.items() if value is not None}
        return read(Dataset, body(_upload(self._transport, "/datasets", data, "file", [path])))

    def get(self, dataset: str | Dataset) -> Dataset:
        return read(Dataset, body(self._transport.request("GET", f"/datasets/{_id(dataset)}")))

    def list(self, *, after: str | None = None, limit: int = 20) -> Page[Dataset]:
        """Newest first."""
        return page(self._transport, "/datasets", Dataset, after=after, limit=limit)

    def all(self) -> Iterator[Dataset]:
        """Every dataset, newest first, page by page."""
        return every(lambda after: self.list(after=after, limit=100))

    def rows(self, dataset: str | Dataset, *, limit: int = 20, offset: int = 0) -> "Page[Json]":
        """Some rows, each as `{column: value}`."""
        params = {"limit": limit, "offset": offset}
        document = body(self._transport.request("GET", f"/datasets/{_id(dataset)}/rows", params=params))
        return Page(data=list(document["data"]), has_more=bool(document.get("has_more")), raw=document)

    def delete(self, dataset: str | Dataset) -> None:
        self._transport.request("DELETE", f"/datasets/{_id(dataset)}")


class Teachers:
    """Checkpoints of your own: safetensors weights with their config and tokenizer."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(self, folder: Path | str, *, name: str | None = None) -> Teacher:
        """Upload the files of a checkpoint's folder. A job then names it by the answer's `reference`."""
        folder = Path(folder)
        if not folder.is_dir():
            raise LimbeckError(
                f"{folder} is not a folder", hint="give the folder with config.json and model.safetensors"
            )
        # Pickled weights lie beside the safe ones in many folders. The service would refuse all for their sake.
        unsafe = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".ot"}
        files = [
            path
            for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.startswith(".") and path.suffix not in unsafe
        ]
        data = {"name": folder.resolve().name if name is None else name}
        return read(Teacher, body(_upload(self._transport, "/teachers", data, "files", files)))

    def get(self, teacher: str | Teacher) -> Teacher:
        return read(Teacher, body(self._transport.request("GET", f"/teachers/{_id(teacher)}")))

    def list(self, *, after: str | None = None, limit: int = 20) -> Page[Teacher]:
        """Newest first."""
        return page(self._transport, "/teachers", Teacher, after=after, limit=limit)

    def delete(self, teacher: str | Teacher) -> None:
        self._transport.request("DELETE", f"/teachers/{_id(teacher)}")


def _id(item: str | Dataset | Teacher) -> str:
    return item if isinstance(item, str) else item.id


def _upload(
    transport: Transport, path: str, data: dict[str, str], field: str, files: Sequence[Path]
) -> httpx2.Response:
    for file in files:
        if not file.is_file():
            raise LimbeckError(f"there is no file {str(file)!r}")
    with ExitStack() as stack:
        try:
            opened = [stack.enter_context(file.open("rb")) for file in files]
        except OSError as error:
            raise LimbeckError(f"{error.filename} cannot be read: {error.strerror}") from error

        def build() -> httpx2.Request:
            parts: list[Any] = []
            for file, stream in zip(files, opened, strict=True):
                stream.seek(0)
                kind = _TYPES.get(file.suffix.lower(), "application/octet-stream")
                parts.append((field, (file.name, stream, kind)))
            return transport.build("POST", path, data=data, files=parts)

        return transport.send(build, idempotent=False)
