"""A student as a folder of the Hugging Face Hub: the layout and the metadata that others' tools look for.

    README.md                   the model card, with metadata at its head that the Hub reads
    config.json, …              weights and tokenizer: `AutoModelFor….from_pretrained` opens the folder
    onnx/model.onnx             fp32; onnx/model_quantized.onnx int8: where optimum and transformers.js look for them
    report.json                 all that was measured
    manifest.json               of these files, so that `limbeck students verify FOLDER` holds; the same student's hash

What holds rows of the data set, `golden.json` and `disagreements.json`, stays out unless it is asked for.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import LimbeckError
from limbeck.extras import extra
from limbeck.verifying import MANIFEST, read_manifest, sha256

CARD = "README.md"
ONNX: Mapping[str, str] = {"student.onnx": "onnx/model.onnx", "student.int8.onnx": "onnx/model_quantized.onnx"}
ROWS = ("golden.json", "disagreements.json")
"""Files with rows of the data set."""
UNKNOWN = "unknown"

_HEAD = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_ABOUT_ROWS = re.compile(r"`golden\.json` has a few inputs with their answers to compare with, `report\.json`")
_HUB = re.compile(r"hub:([\w.-]+(?:/[\w.-]+)?)(?:@.*)?")
_PIPELINES = {"text-regression": "text-classification"}
"""The Hub has no task of its own for numbers of texts."""
_METRICS = {
    "accuracy": "accuracy",
    "micro_f1": "f1",
    "macro_f1": "f1",
    "f1": "f1",
    "exact_match": "exact_match",
    "exact": "exact_match",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
}
"""What metrics of a report are called on the Hub."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Choices:
    """What only whoever publishes a student can say of it."""

    license: str | None = None
    """A licence as the Hub spells it, such as apache-2.0; None: the one that all of its sources have, if they do."""
    datasets: Sequence[str] = ()
    """Data sets of the Hub that it was trained on."""
    rows: bool = False
    """Keep the files that hold rows of the data set."""


def refuse_foreign(folder: Path) -> None:
    """Raises `LimbeckError` if `folder` holds something that is no student: it would be published with it."""
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise LimbeckError(f"{folder} is not empty, and no student", hint="name a folder that is not there yet")


def arrange(folder: Path, choices: Choices) -> dict[str, Any]:
    """Make of a downloaded student's `folder` one for the Hub. Returns the metadata of its card."""
    manifest = read_manifest(folder)
    report = json.loads((folder / "report.json").read_text("utf-8")) if (folder / "report.json").is_file() else {}
    for old, new in ONNX.items():
        if (folder / old).is_file():
            (folder / new).parent.mkdir(exist_ok=True)
            (folder / old).replace(folder / new)
    if not choices.rows:
        for name in ROWS:
            (folder / name).unlink(missing_ok=True)
    head = metadata(manifest, report, choices)
    _write_card(folder / CARD, head, report, rows=choices.rows)
    _write_manifest(folder, manifest)
    return head


def metadata(manifest: Json, report: Json, choices: Choices) -> dict[str, Any]:
    """What the Hub reads of a card (https://huggingface.co/docs/hub/model-cards)."""
    spec = manifest.get("spec") or {}
    task = str(manifest.get("task"))
    pipeline = _PIPELINES.get(task, task)
    name = spec.get("name") or "distilled student"
    distilled = (report.get("arms") or {}).get("distilled") or {}
    measured = {key: distilled[key] for key in _in_order(report) if isinstance(distilled.get(key), int | float)}
    head: dict[str, Any] = {
        "license": choices.license or license_of(manifest),
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        "tags": ["knowledge-distillation", "onnx", "limbeck"],
    }
    bases = base_models(manifest)
    if bases:
        head["base_model"] = bases
    if choices.datasets:
        head["datasets"] = list(choices.datasets)
    if measured:
        head["metrics"] = list(dict.fromkeys(_METRICS[key] for key in measured))
        dataset = {"name": _dataset(spec), "type": choices.datasets[0] if choices.datasets else "private"}
        found = [{"type": _METRICS[key], "name": key, "value": round(value, 4)} for key, value in measured.items()]
        results = [{"task": {"type": pipeline}, "dataset": dataset, "metrics": found}]
        head["model-index"] = [{"name": name, "results": results}]
    return head


def license_of(manifest: Json) -> str:
    """The licence that all of a student's sources name, if it is the same one. Not legal advice: `unknown` if not."""
    named = {str(one["license"]).lower() if one.get("license") else UNKNOWN for one in _sources(manifest)}
    return named.pop() if len(named) == 1 else UNKNOWN


def base_models(manifest: Json) -> list[str]:
    """The checkpoints of the Hub that taught a student, or that it began as."""
    found = [_HUB.fullmatch(str(one.get("reference", ""))) for one in _sources(manifest)]
    return list(dict.fromkeys(one[1] for one in found if one is not None))


def push(folder: Path, repository: str, *, private: bool = True, endpoint: str | None = None) -> str:
    """Upload a folder as `repository` (`org/name`), which is made if need be. Returns its address.

    The token is that of `HF_TOKEN`, or of `hf auth login`. Raises `LimbeckError` for whatever the Hub refuses.
    """
    hub = extra("huggingface_hub", "hub")
    token = hub.get_token()
    if token is None:
        raise LimbeckError("there is no token for the Hugging Face Hub", hint="set HF_TOKEN to one that may write")
    api = hub.HfApi(endpoint=endpoint, token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="A student, distilled by Limbeck")
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        raise LimbeckError(f"the Hugging Face Hub refused {repository}: {error}") from error
    return str(url)


def _sources(manifest: Json) -> list[Json]:
    return [*(manifest.get("teachers") or []), *(manifest.get("bases") or [])]


def _in_order(report: Json) -> list[str]:
    """The names of the metrics, the main one first."""
    main = str(report.get("metric", ""))
    return sorted(_METRICS, key=lambda name: name != main)


def _dataset(spec: Json) -> str:
    dataset = spec.get("dataset") or {}
    return str(dataset.get("id") or dataset.get("test") or UNKNOWN)


def _write_card(path: Path, head: Json, report: Json, *, rows: bool) -> None:
    """The card that the service wrote, with this head, and with the names that files have here."""
    text = path.read_text("utf-8") if path.is_file() else f"# Distilled student\n\n{report.get('verdict', '')}\n"
    text = _HEAD.sub("", text, count=1).lstrip("\n")
    for old, new in ONNX.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    if not rows:
        text = _ABOUT_ROWS.sub("`report.json` has", text)
    written = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True, width=120)
    path.write_text(f"---\n{written}---\n\n{text}", "utf-8")


def _write_manifest(folder: Path, manifest: Json) -> None:
    """The same student's manifest, of the files that are here now."""
    names = [ONNX.get(name, name) for name in manifest["files"]]
    kept = sorted(name for name in names if (folder / name).is_file())
    files = {name: {"sha256": sha256(folder / name), "size": (folder / name).stat().st_size} for name in kept}
    document = json.dumps({**manifest, "files": files}, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / MANIFEST).write_text(document + "\n", "utf-8")
