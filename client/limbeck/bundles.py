"""Bundles: a job with its rows as a zip archive, which any service can repeat, and what a repetition gave.

A bundle holds `job.json`, `datasets/<id>.parquet`, `report.json`, `manifest.json` and a README.txt.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from limbeck.datasets import Datasets
from limbeck.errors import DownloadDamaged, LimbeckError
from limbeck.objects import Json
from limbeck.verifying import IDENTITY, sha256
from limbeck.wires import Wire

_FORMAT = 1
_DATASETS = frozenset({"id", "train", "validation", "test"})
_MOST_JSON = 64 * 1024**2


@dataclass(frozen=True)
class Bundle:
    """An archive that has been read; its rows are still in it."""

    path: Path
    job: Json
    """`job.json`: spec, student_hash, datasets with their SHA-256, teachers, versions, hardware."""
    manifest: Json = field(repr=False)


@dataclass(frozen=True)
class Difference:
    """Something that two manifests say differently."""

    what: str
    before: Any
    now: Any


@dataclass(frozen=True)
class Comparison:
    """A student and its repetition. `differences` has the hashes first, then versions and hardware."""

    same: bool
    """The same weights, config and tokenizer, bit for bit."""
    hash: str
    expected: str
    differences: Sequence[Difference]


def read_bundle(path: Path) -> Bundle:
    """Raises `LimbeckError` where `path` is no bundle that this version understands."""
    with _told(path), ZipFile(path) as archive:
        job, manifest = (_json(archive, name) for name in ("job.json", "manifest.json"))
    if job.get("format") != _FORMAT or not isinstance(job.get("spec"), dict):
        raise LimbeckError(
            f"{path} is no bundle of format {_FORMAT}", hint="limbeck jobs bundle ID writes one; is the client old?"
        )
    return Bundle(path, job, manifest)


async def spec_on(bundle: Bundle, datasets: Datasets[Any], wire: Wire) -> Json:
    """The spec of the bundle with the datasets of another service, to which the rows are uploaded if it lacks them.

    Raises `DownloadDamaged` where rows of the bundle are not those that its job.json names.
    """
    there = {dataset.sha256: dataset.id async for dataset in Datasets.all(datasets) if dataset.status == "ready"}
    ids = {}
    for wanted in bundle.job["datasets"]:
        known = there.get(wanted["sha256"])
        ids[wanted["id"]] = known if known is not None else await _upload(bundle, wanted, datasets, wire)
    spec = dict(bundle.job["spec"])
    spec["dataset"] = {
        name: ids[value] if name in _DATASETS and isinstance(value, str) else value
        for name, value in spec["dataset"].items()
    }
    return spec


async def _upload(bundle: Bundle, wanted: Mapping[str, Any], datasets: Datasets[Any], wire: Wire) -> str:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.parquet")
        await wire.aside(partial(_extract, bundle, wanted, rows))
        return (await Datasets.upload(datasets, rows, name=str(wanted["name"]))).id


def _extract(bundle: Bundle, wanted: Mapping[str, Any], rows: Path) -> None:
    name = f"datasets/{wanted['id']}.parquet"
    with _told(bundle.path):
        with ZipFile(bundle.path) as archive, archive.open(name) as source, rows.open("wb") as target:
            shutil.copyfileobj(source, target)
        if sha256(rows) != wanted["sha256"]:
            raise DownloadDamaged(f"{name} in {bundle.path} does not match its SHA-256", hint="make the bundle again")


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Comparison:
    """Two manifests: whether their students are the same, and what is different about how they were made."""
    return Comparison(
        same=before["student_hash"] == now["student_hash"],
        hash=str(now["student_hash"]),
        expected=str(before["student_hash"]),
        differences=list(_differences(before, now)),
    )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    def part(name: str) -> Iterator[Difference]:
        old, new = before.get(name) or {}, now.get(name) or {}
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                yield Difference(f"{name} {key}", old.get(key), new.get(key))

    files = [{name: entry["sha256"] for name, entry in one["files"].items()} for one in (before, now)]
    for name in sorted({*files[0], *files[1]}):
        if IDENTITY.fullmatch(name) and files[0].get(name) != files[1].get(name):
            yield Difference(f"file {name}", files[0].get(name), files[1].get(name))
    yield from part("data")
    for place, (old, new) in enumerate(zip(before.get("teachers", ()), now.get("teachers", ()), strict=False)):
        for key in ("checkpoint", "identity"):
            if old.get(key) != new.get(key):
                yield Difference(f"teacher {place + 1} {key}", old.get(key), new.get(key))
    for name in ("seeds", "versions", "hardware"):
        yield from part(name)


def _json(archive: ZipFile, name: str) -> Json:
    with archive.open(name) as file:
        document = json.loads(file.read(_MOST_JSON))
    if not isinstance(document, dict):
        raise TypeError(f"{name} is not a JSON object")
    return document


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong with an archive, as an error of this package."""
    try:
        yield
    except FileNotFoundError as error:
        raise LimbeckError(f"there is no file {str(path)!r}") from error
    except (BadZipFile, KeyError, TypeError, ValueError) as error:
        raise LimbeckError(f"{path} is no bundle: {error}", hint="limbeck jobs bundle ID writes one") from error
    except OSError as error:
        raise LimbeckError(f"{path} cannot be read: {error.strerror or error}") from error
