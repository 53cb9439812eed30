"""Files that a job names in the place of datasets: each is uploaded once, and known again by its SHA-256.

The service keeps rows as Parquet, whose hash is another one than that of the file; so the dataset's name has the
first digits of the file's.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from limbeck.client import Client
from limbeck.errors import LimbeckError
from limbeck.objects import Json
from limbeck.verifying import sha256

UNKNOWN = "ds_not_uploaded"

_DIGITS = 16
_PLACES = ("train", "validation", "test")


def named_files(spec: Mapping[str, Any]) -> dict[str, str]:
    """The files of a job by the place of the dataset's id: `id` where it has one dataset, else train, …"""
    dataset = spec.get("dataset")
    if not isinstance(dataset, Mapping):
        return {}
    if "file" in dataset:
        if "id" in dataset or not isinstance(dataset["file"], str):
            raise LimbeckError("dataset takes a file or an id, and a file is a text", hint="dataset: {file: rows.csv}")
        return {"id": dataset["file"]}
    found = {place: dataset[place] for place in _PLACES if isinstance(dataset.get(place), Mapping)}
    for place, given in found.items():
        if set(given) != {"file"} or not isinstance(given["file"], str):
            raise LimbeckError(f"dataset/{place} takes an id, or {{file: rows.csv}}")
    return {place: given["file"] for place, given in found.items()}


def with_datasets(client: Client, spec: Json, folder: Path, say: Callable[[str], None]) -> Json:
    """The job with datasets in the place of files, which are relative to `folder`; those not yet there are uploaded."""

    def make(path: Path, name: str) -> str:
        found = client.datasets.upload(path, name=name)
        say(f"uploaded {path.name} as {found.id}: {found.rows:,} rows")
        return found.id

    return _replaced(client, spec, folder, say, make)


def with_known_datasets(client: Client, spec: Json, folder: Path) -> Json:
    """The same without creating anything: a file that has not been uploaded becomes the id `UNKNOWN`."""
    return _replaced(client, spec, folder, lambda _: None, lambda *_: UNKNOWN)


def _replaced(
    client: Client, spec: Json, folder: Path, say: Callable[[str], None], make: Callable[[Path, str], str]
) -> Json:
    files = named_files(spec)
    if not files:
        return spec
    ids: dict[str, str] = {}
    for name in dict.fromkeys(files.values()):
        path = folder / name
        digest = _digest(path)
        mark = f"(sha256 {digest[:_DIGITS]})"
        ids[name] = _known(client, path.name, digest, mark, say) or make(path, f"{path.name} {mark}")
    rest = {name: value for name, value in spec["dataset"].items() if name not in {"file", *files}}
    return {**spec, "dataset": {**{place: ids[name] for place, name in files.items()}, **rest}}


def _known(client: Client, name: str, digest: str, mark: str, say: Callable[[str], None]) -> str | None:
    """The dataset that was made of the same bytes."""
    for dataset in client.datasets.all():
        if dataset.status == "ready" and (dataset.sha256 == digest or dataset.name.endswith(mark)):
            say(f"{name} is there already as {dataset.id}: {dataset.rows:,} rows")
            return dataset.id
    return None


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise LimbeckError(
            f"the dataset's file {str(path)!r} cannot be read: {error.strerror}",
            hint="a path is relative to the job file; a dataset that is there already is `dataset: {id: ds_…}`",
        ) from error
