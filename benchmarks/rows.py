"""The data sets as Parquet files, as an upload would store them. Knows no task and no job."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

JsonObject = dict[str, Any]

_PARTS = ("train", "validation", "test")
_LABELLED = 2000
_FEW_VALIDATION = 500
_SHARE_OF_PARAGRAPHS = 0.1


def prepare(source: Path, folder: Path) -> dict[str, Path]:
    """Dataset ids and their Parquet files in `folder`, written from `source` where they are not there yet.

    `source` holds sst2/{train,validation,test}.tsv, {stsb,wnut17}/{train,validation,test}.jsonl and
    xquad/{train,test}.jsonl. Whatever is drawn is drawn by a fixed seed. A folder that is missing has no datasets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for name, rows in _tables(source):
        found[name] = folder / f"{name}.parquet"
        if not found[name].exists():
            part = found[name].with_suffix(".part")
            pq.write_table(pa.Table.from_pylist(rows), part)
            part.rename(found[name])
    return found


def _tables(source: Path) -> Iterator[tuple[str, list[JsonObject]]]:
    if (source / "sst2").is_dir():
        parts = {part: _tsv(source / "sst2" / f"{part}.tsv") for part in _PARTS}
        yield from ((f"sst2-{part}", rows) for part, rows in parts.items())
        yield from _few(parts["train"], parts["validation"])
    for name in ("stsb", "wnut17"):
        if (source / name).is_dir():
            yield from ((f"{name}-{part}", _json_lines(source / name / f"{part}.jsonl")) for part in _PARTS)
    if (source / "xquad").is_dir():
        train, validation = _by_paragraph(_json_lines(source / "xquad" / "train.jsonl"))
        yield "xquad-train", train
        yield "xquad-validation", validation
        yield "xquad-test", _json_lines(source / "xquad" / "test.jsonl")


def _few(train: list[JsonObject], validation: list[JsonObject]) -> Iterator[tuple[str, list[JsonObject]]]:
    """2,000 labelled rows; the same with all others, their labels taken away; and 500 rows to choose the epoch on."""
    generator = np.random.default_rng(0)
    labelled = set(generator.permutation(len(train))[:_LABELLED].tolist())
    chosen = generator.permutation(len(validation))[:_FEW_VALIDATION].tolist()
    yield "sst2-few", [train[row] for row in sorted(labelled)]
    yield (
        "sst2-few-and-many",
        [one if row in labelled else {**one, "label": None} for row, one in enumerate(train)],
    )
    yield "sst2-few-validation", [validation[row] for row in sorted(chosen)]


def _by_paragraph(rows: list[JsonObject]) -> tuple[list[JsonObject], list[JsonObject]]:
    """Training and validation rows: the questions on one context stay together."""
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    order = np.random.default_rng(0).permutation(len(contexts))
    held = {contexts[place] for place in order[: max(1, round(_SHARE_OF_PARAGRAPHS * len(contexts)))]}
    return [row for row in rows if row["context"] not in held], [row for row in rows if row["context"] in held]


def _tsv(path: Path) -> list[JsonObject]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{"sentence": row["sentence"].strip(), "label": int(row["label"])} for row in rows]


def _json_lines(path: Path) -> list[JsonObject]:
    with path.open(encoding="utf-8") as file:
        return [{name: value for name, value in json.loads(line).items() if name != "id"} for line in file]
