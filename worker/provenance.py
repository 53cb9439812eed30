"""Where a student comes from: its teachers with their licences, its rows, the libraries and the machine.

`checkpoints` reads what the folders of a job's checkpoints say of their licences, `provenance` puts everything together
for the manifest, and `section` writes it into the model card. A licence is told as its source writes it: that is no
legal advice, and what is not known is said to be unknown.
"""

import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import metadata_load
from pydantic import JsonValue

from models import references
from models.artifacts import LOSS_CONVENTION, Origin, read_manifest, sha256
from models.errors import ArtifactDamaged, Invalid
from models.host import cores, processor
from models.places import MANIFEST
from models.specs import LocalTeacher, PretrainedStudent, ResolvedSpec, SelfTeacher
from worker.folders import fingerprint

_RECORDED = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime", "numpy", "limbeck-server")
_CARD = "README.md"
_CONFIG = "config.json"
_PLAIN = re.compile(r"[\w .,;:()+/&'-]{1,200}")
_LONGEST_TEXT = 400
"""A `License` of package metadata that is longer is the licence itself, and not its name."""
# The first one that fits is taken, so the longer names stand before those that they contain.
_TEXTS: Sequence[tuple[str, str]] = (
    (r"apache license\W+version 2\.0", "Apache-2.0"),
    (r"gnu affero general public license\W+version 3", "AGPL-3.0"),
    (r"gnu lesser general public license\W+version 3", "LGPL-3.0"),
    (r"gnu general public license\W+version 3", "GPL-3.0"),
    (r"gnu general public license\W+version 2", "GPL-2.0"),
    (r"mozilla public license\W+version 2\.0", "MPL-2.0"),
    (r"creative commons attribution-noncommercial-sharealike 4\.0", "CC-BY-NC-SA-4.0"),
    (r"creative commons attribution-noncommercial 4\.0", "CC-BY-NC-4.0"),
    (r"creative commons attribution-sharealike 4\.0", "CC-BY-SA-4.0"),
    (r"creative commons attribution 4\.0", "CC-BY-4.0"),
    (r"redistribution and use in source and binary forms.*neither the name", "BSD-3-Clause"),
    (r"redistribution and use in source and binary forms", "BSD-2-Clause"),
    (r"permission is hereby granted, free of charge, to any person", "MIT"),
)


class License(NamedTuple):
    """`name` as its source writes it."""

    name: str
    source: str


@dataclass(frozen=True)
class Provenance:
    """All that the manifest and the model card say of where a student comes from, beside its spec."""

    teachers: Sequence[Origin]
    bases: Sequence[Origin]
    """Checkpoints beside the teachers that the student's weights began as."""
    data: Mapping[str, str]
    """SHA-256 of each split that was used."""
    seeds: Mapping[str, int]
    versions: Mapping[str, str]
    hardware: Mapping[str, JsonValue]
    report_sha256: str
    loss_convention: int = LOSS_CONVENTION


def checkpoints(spec: ResolvedSpec, find_folder: Callable[[str], Path]) -> dict[str, Origin]:
    """Every checkpoint that `spec` names, by its reference, as it is before any training."""
    named = [teacher.model for teacher in spec.teachers if isinstance(teacher, LocalTeacher | SelfTeacher)]
    named += [stage.student.model for stage in spec.stages if isinstance(stage.student, PretrainedStudent)]
    return {
        reference: _origin(reference, find_folder(reference))
        for reference in dict.fromkeys(named)
        if reference is not None
    }


def _origin(reference: str, folder: Path) -> Origin:
    found = find_license(reference, folder)
    digest = fingerprint(folder)
    return Origin(
        reference=reference,
        identity=digest,
        checkpoint=digest,
        license=None if found is None else found.name,
        license_source=None if found is None else found.source,
    )


def provenance(
    named: Mapping[str, Origin],
    taught: Iterable[tuple[str, str]],
    data: Mapping[str, str],
    *,
    seed: int,
    device: str,
    report: Path,
) -> Provenance:
    """`named` are the `checkpoints` of the spec, `taught` the reference and the identity of each teacher as it taught.

    `report` is the file report.json as it will be published; `device` is `cpu` or `gpu`.
    """
    teachers = [
        named[reference].model_copy(update={"identity": identity})
        if reference in named
        else Origin(reference=reference, identity=identity)
        for reference, identity in taught
    ]
    known = {teacher.reference for teacher in teachers}
    bases = [origin for reference, origin in named.items() if reference not in known]
    return Provenance(teachers, bases, data, {"seed": seed}, _versions(), _hardware(device), sha256(report))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        with suppress(PackageNotFoundError):  # we ourselves, run from a checkout
            found[name] = version(name)
    return found


def _hardware(device: str) -> dict[str, JsonValue]:
    """What decides the last bits of a sum: the processor, how many threads share the work, the GPU."""
    return {
        "device": device,
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "gpu" else None,
    }


# --- licences ---------------------------------------------------------------------------------------------------------


def find_license(reference: str, folder: Path) -> License | None:
    """What is said of the licence of the weights in `folder`: by themselves first, then by the package they came in."""
    for find in (_of_card, _of_config, _of_text, _of_manifest):
        found = find(folder)
        if found is not None:
            return found
    try:
        parsed = references.parse(reference)
    except Invalid:
        return None
    return _of_package(parsed.name.partition("/")[0]) if parsed.scheme == "package" else None


def _of_card(folder: Path) -> License | None:
    """`license` in the head of the model card; where that is "other", the name that stands beside it."""
    try:
        head = metadata_load(folder / _CARD) or {}
    except Exception:  # noqa: BLE001 - a stranger's YAML, and its errors have no common root
        return None
    name = _name(head.get("license"))
    if name is not None and name.lower() == "other":
        name = _name(head.get("license_name")) or name
    return None if name is None else License(name, _CARD)


def _of_config(folder: Path) -> License | None:
    try:
        config = json.loads((folder / _CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    name = _name(config.get("license")) if isinstance(config, dict) else None
    return None if name is None else License(name, _CONFIG)


def _of_text(folder: Path) -> License | None:
    """A licence's own file: its SPDX identifier where the text is a well-known one, else its first line."""
    try:
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_license(path.name)]
        texts = [(path.name, path.read_text("utf-8", errors="replace")[:100_000]) for path in files]
    except OSError:
        return None
    for file, text in texts:
        plain = " ".join(text.lower().split())
        known = next((name for pattern, name in _TEXTS if re.search(pattern, plain)), None)
        name = known or _name(next((line.strip() for line in text.splitlines() if line.strip()), None))
        if name is not None:
            return License(name, file)
    return None


def _is_license(file: str) -> bool:
    return file.upper().partition(".")[0] in {"LICENSE", "LICENCE", "COPYING"}


def _of_manifest(folder: Path) -> License | None:
    """Of a student that Limbeck published: the licences of its teachers, if all of them are known."""
    try:
        names = [teacher.license for teacher in read_manifest(folder).teachers]
    except ArtifactDamaged:
        return None
    known = [name for name in names if name is not None]
    return License(", ".join(dict.fromkeys(known)), MANIFEST) if known and len(known) == len(names) else None


def _of_package(package: str) -> License | None:
    """What the Python distribution that ships `package` says of itself."""
    for distribution in packages_distributions().get(package, ()):
        head = metadata(distribution)
        short = (name for field in ("License-Expression", "License") for name in head.get_all(field) or ())
        classified = (line.rpartition(" :: ")[2] for line in head.get_all("Classifier") or () if "License ::" in line)
        for text in (*short, *classified):
            name = _name(text) if len(text) <= _LONGEST_TEXT else None
            if name is not None:
                return License(name, f"metadata of {distribution}")
    return None


def _name(value: Any) -> str | None:
    """A licence's name of a text or a list of them, in one line; None where there is none that a card could show."""
    parts = value if isinstance(value, list) else [value]
    text = " ".join(", ".join(part for part in parts if isinstance(part, str)).split())
    return text if _PLAIN.fullmatch(text) and text.lower() not in {"unknown", "none"} else None


# --- the model card ---------------------------------------------------------------------------------------------------


def section(made: Provenance) -> str:
    """The card's last section, in Markdown."""
    return "\n\n".join(("## Where it comes from", *_origins(made), "\n".join(_lines(made)))) + "\n"


def _origins(made: Provenance) -> Iterator[str]:
    """A table, and a sentence on what has to be found out."""
    lines = ["| | | licence | found in | identity |", "|---|---|---|---|---|"]
    unknown = []
    for role, origins in (("teacher", made.teachers), ("began as", made.bases)):
        for one in origins:
            reference = _cell(one.reference)
            if one.license is None and (one.checkpoint or not one.identity):
                unknown.append(reference)
            cells = [role, reference, _license(one), _cell(one.license_source or "")]
            lines.append(f"| {' | '.join(cells)} | {f'`{one.identity}`' if one.identity else ''} |")
    yield "\n".join(lines)
    if unknown:
        yield (
            f"The licence of {', '.join(unknown)} is unknown: nothing that was at hand names it. Find out before you "
            "give this student to others."
        )


def _license(one: Origin) -> str:
    if one.license is not None:
        return _cell(one.license)
    return "unknown" if one.checkpoint or not one.identity else "trained here"


def _lines(made: Provenance) -> Iterator[str]:
    hardware = made.hardware
    machine = f"{_cell(str(hardware['cpu']))} ({hardware['cores']} cores, threads: {hardware['threads']})"
    if hardware["gpu"] is not None:
        machine = f"{_cell(str(hardware['gpu']))}; {machine}"
    yield from (f"- {split} rows: SHA-256 `{digest}`" for split, digest in made.data.items())
    yield f"- `report.json`: SHA-256 `{made.report_sha256}`"
    yield f"- seeds: {', '.join(f'{name} {value}' for name, value in made.seeds.items())}"
    yield f"- loss convention: {made.loss_convention}"
    yield f"- versions: {', '.join(f'{name} {value}' for name, value in made.versions.items())}"
    yield f"- trained on: {machine}"


def _cell(text: str) -> str:
    """`text` where Markdown must not take it for a table's edge, a code's end or a new line."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
