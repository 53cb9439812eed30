"""From a network in memory to a folder that serves: weights, tokenizer, ONNX at two precisions, golden answers, card.

In the order in which the recipe calls them:

    write_student   config.json, model.safetensors, the tokenizer's files: all that transformers needs
    to_onnx         student.onnx, fp32
    quantize        student.int8.onnx, the same network with 8-bit weights
    check           that the exported network answers as the one in memory
    write_golden    golden.json: a few inputs with their answers, compared at every load
    finish          report.json, README.md (the model card), and manifest.json last: from here on nothing changes

A teacher is exported in the same way, so that it is measured in the same way. This module measures nothing, and does
not know where the folder goes.
"""

import copy
import json
import logging
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from models.artifacts import Manifest, write_manifest
from models.errors import JobFailure
from models.runtime import FILES, GOLDEN, Runtime
from models.specs import LocalTeacher, ResolvedSpec, TextClassification

# Recent enough for LayerNormalization and Gelu as one operator each, which ONNX Runtime has fast kernels for.
_OPSET = 20
_LARGEST_DIFFERENCE = 1e-3
_GOLDEN_EXAMPLES = 8
_RECORDED = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime", "numpy", "limbeck-server")


def write_student(
    folder: Path, network: Any, tokenizer: Any, *, task: str, labels: Sequence[str], max_length: int
) -> None:
    """Write a transformers checkpoint: `AutoModelForSequenceClassification` and `AutoTokenizer` open `folder`.

    `network` is a `PreTrainedModel` with a classification head, whose config is given `labels` in the order of the
    logits; `tokenizer` is a fast tokenizer. Two networks that are equal give files that are equal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.config.id2label = dict(enumerate(labels))
    network.config.label2id = {label: index for index, label in enumerate(labels)}
    if task == "text-classification":
        network.config.problem_type = "single_label_classification"
    network.config.name_or_path = ""  # else config.json says where on this machine the teacher was
    network.save_pretrained(folder)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_length
    # Left behind by whoever encoded last; in the file they would change the student's hash.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.name_or_path = ""
    tokenizer.save_pretrained(folder)


def to_onnx(network: Any, folder: Path, *, max_length: int) -> None:
    """Write `student.onnx`: fp32, any number of texts of any length up to `max_length` tokens.

    Inputs `input_ids` and `attention_mask`, and `token_type_ids` where the network has more than one type, int64
    (B, L); output `logits`, float32 (B, C). `network` is left as it is. Raises `JobFailure` (code `export_failed`).
    """
    answers = _Answers(_on_cpu(network))
    names = answers.inputs
    length = min(12, max_length)
    # Two texts of different length: an example of one text, or without padding, would be taken for a constant.
    ids = torch.full((2, length), 1)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    example = dict(zip(names, (ids, mask, torch.zeros_like(ids)), strict=False))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=max_length)}
    with _quiet(), torch.inference_mode():
        try:
            program: Any = torch.onnx.export(
                answers,
                tuple(example.values()),
                input_names=list(names),
                output_names=["logits"],
                opset_version=_OPSET,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(names, axes),
                verbose=False,
            )
            onnx.save(_without_origins(program.model_proto), folder / FILES["fp32"])
        except Exception as error:  # the exporter's errors have no common root
            kind = network.config.model_type
            raise JobFailure(
                f"a network of the architecture {kind!r} could not be exported to ONNX",
                code="export_failed",
                hint="choose a student of another architecture; BERT, RoBERTa, DistilBERT and ELECTRA are tested",
            ) from error


def quantize(folder: Path) -> None:
    """Write `student.int8.onnx` of `student.onnx`: 8-bit weights, activations scaled text by text as they come.

    A scale for each output channel costs no time and agrees better with fp32 than one for each matrix. Weights use 7 of
    the 8 bits: with the eighth, processors without VNNI saturate their 16-bit sums, and the same student would answer
    differently from machine to machine.
    """
    with _quiet():
        quantize_dynamic(
            folder / FILES["fp32"],
            folder / FILES["int8"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def check(network: Any, tokenizer: Any, folder: Path, texts: Sequence[str]) -> float:
    """The largest difference of a logit between `student.onnx` as served and `network`, over `texts`, one at a time.

    Raises `JobFailure` (code `export_mismatch`) if the two tokenizers cut a text differently, if the difference is more
    than 0.001, or if the best label is another one and the two best are not as close as that.
    """
    runtime = Runtime.open(folder, precision="fp32")
    encodings = runtime.tokenize(texts)
    found = runtime.logits(encodings)
    answers = _Answers(_on_cpu(network))
    expected = np.empty_like(found)
    with torch.inference_mode():
        for row, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            cut = tokenizer(text, truncation=True, max_length=runtime.max_length)["input_ids"]
            if list(cut) != encoding.ids:
                raise _mismatch("the exported tokenizer cuts a text differently")
            ids = torch.tensor([encoding.ids])
            types = torch.tensor([encoding.type_ids])
            expected[row] = answers(*(ids, torch.ones_like(ids), types)[: len(answers.inputs)])[0].numpy()
    difference = float(np.abs(found - expected).max(initial=0.0))
    if not difference <= _LARGEST_DIFFERENCE:  # also true for NaN
        raise _mismatch(f"a logit of the exported network differs by {difference:.3g}")
    best = expected.max(axis=1) - np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    if bool((best > _LARGEST_DIFFERENCE).any()):
        raise _mismatch("the exported network gives another label")
    return difference


def write_golden(folder: Path, texts: Sequence[str]) -> None:
    """Write `golden.json`: up to 8 of `texts`, from the shortest to the longest, with their logits and labels.

    The answers are those of the runtime that serves, on this machine, one text at a time, for each precision exported.
    """
    by_length = sorted(set(texts), key=lambda text: (len(text), text))
    at = np.linspace(0, len(by_length) - 1, min(_GOLDEN_EXAMPLES, len(by_length))).astype(int)
    chosen = [by_length[index] for index in at]
    answers = {}
    labels: dict[str, list[str]] = {}
    for precision, name in FILES.items():
        if (folder / name).exists():
            runtime = Runtime.open(folder, precision=precision)
            logits = runtime.logits(runtime.tokenize(chosen))
            answers[precision] = _plain(logits)
            labels[precision] = [best[0]["label"] for best in runtime.decode(logits)]
    examples = [
        {
            "input": text,
            "logits": {precision: answers[precision][row] for precision in answers},
            "label": {precision: labels[precision][row] for precision in labels},
        }
        for row, text in enumerate(chosen)
    ]
    _write_json(folder / GOLDEN, {"format": 1, "examples": examples})


def finish(
    folder: Path,
    report: Mapping[str, Any],
    spec: ResolvedSpec,
    *,
    data: Mapping[str, str],
    teacher: Mapping[str, Any],
    disagreements: Sequence[Mapping[str, Any]] | None = None,
) -> Manifest:
    """Write the report, the card and, last, the manifest; the folder is then an artifact, ready to be published.

    `data` has the SHA-256 of each split, `teacher` says which teacher it was. `disagreements`, the rows on which
    student and teacher differ, go to `disagreements.json`. Raises `ArtifactDamaged` if the folder does not give its
    own golden answers, `StorageFailure` if it cannot be written.
    """
    served = report["precision"]["served"]
    runtime = Runtime.open(folder, precision=served)
    runtime.check_golden()
    _write_json(folder / "report.json", report)
    if disagreements is not None:
        _write_json(folder / "disagreements.json", {"format": 1, "rows": list(disagreements)})
    write_card(folder, report, spec)
    return write_manifest(
        folder,
        kind="student",
        task=spec.task.kind,
        labels=runtime.labels,
        max_length=runtime.max_length,
        precision=served,
        spec=spec.model_dump(mode="json"),
        data=data,
        teacher=teacher,
        seeds={"seed": spec.seed},
        versions={"python": platform.python_version(), **_versions()},
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _RECORDED:
        with suppress(PackageNotFoundError):  # we ourselves, run from a checkout
            found[name] = version(name)
    return found


# --- the card ---------------------------------------------------------------------------------------------------------


def write_card(folder: Path, report: Mapping[str, Any], spec: ResolvedSpec) -> None:
    """Write `README.md`: what this student is, how good it is, and how to use it, for somebody who was not there."""
    task = spec.task
    if not isinstance(task, TextClassification):
        raise JobFailure(
            f"{task.kind!r} is not available in this version", code="not_available_yet", pointer="/task/kind"
        )
    arms, rows, precision = report["arms"], report["rows"], report["precision"]
    names = [arm for arm in ("teacher", "distilled", "control", "untrained") if arms.get(arm)]
    checks = [f"- {check['reason']}" for check in report["gate"]["checks"]]
    card = _CARD.format(
        front_matter=_front_matter(report, spec),
        title=_cell(spec.name or "Distilled student"),
        verdict=report["verdict"],
        labels=", ".join(f"`{_cell(label)}`" for label in report["labels"]),
        max_length=task.max_length,
        test=rows["test"],
        train=rows["train"],
        validation=rows["validation"],
        host=report["host"]["cpu"] or "this host",
        arms="\n".join(_card_row(name, arms[name]) for name in names),
        precision=precision["served"],
        reason=precision["reason"],
        gate="\n".join(["", "What its gate asked for:", "", *checks, ""]) if checks else "",
        per_class="\n".join(_class_row(row) for row in arms["distilled"]["per_class"]),
        file=FILES[precision["served"]],
        spec=json.dumps(spec.model_dump(mode="json", exclude_none=True), indent=1),
    )
    (folder / "README.md").write_text(card, "utf-8")


_CARD = """\
---
{front_matter}
---

# {title}

A small text classifier, distilled from a larger one. {verdict}

Labels: {labels}. Texts longer than {max_length} tokens are cut.

## Results

On {test:,} test rows, which neither training ({train:,} rows) nor the choice of the best epoch ({validation:,} rows)
has seen. *Control* is the same student trained on the labels without the teacher; *untrained* is the student before its
training. Latency is that of one text on one thread of {host}, tokenization included.

| | accuracy | 95 % interval | agrees with teacher | parameters | file | p50 |
|---|--:|--:|--:|--:|--:|--:|
{arms}

Served at {precision}: {reason}
{gate}
Label by label, the distilled student:

| label | precision | recall | F1 | rows |
|---|--:|--:|--:|--:|
{per_class}

## Use

With transformers:

```python
from transformers import pipeline

classify = pipeline("text-classification", model=".", top_k=None)
print(classify("a text"))
```

As it is served, with onnxruntime, tokenizers and numpy alone:

```python
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({max_length})
session = onnxruntime.InferenceSession("{file}")
labels = json.loads(Path("config.json").read_text("utf-8"))["id2label"]

text = tokenizer.encode("a text")
values = dict(input_ids=text.ids, attention_mask=text.attention_mask, token_type_ids=text.type_ids)
inputs = dict((node.name, np.array([values[node.name]], np.int64)) for node in session.get_inputs())
logits = session.run(["logits"], inputs)[0][0]
print(labels[str(logits.argmax())])
```

`golden.json` has a few inputs with their answers to compare with, `report.json` all that was measured,
`manifest.json` the SHA-256 of every file.

## How it was made

The spec of the job, every default filled in:

```json
{spec}
```
"""


def _card_row(name: str, arm: Mapping[str, Any]) -> str:
    low, high = arm["accuracy_interval"]
    agreement = "" if arm["agreement"] is None else f"{100 * arm['agreement']:.1f} %"
    size = "" if arm["bytes"] is None else f"{arm['bytes'] / 1e6:.1f} MB"
    p50 = (arm["precisions"].get(arm["served"]) or {}).get("p50_ms")
    latency = "" if p50 is None else f"{p50:.2f} ms"
    accuracy = f"{100 * arm['accuracy']:.1f} % | {100 * low:.1f} – {100 * high:.1f} %"
    return f"| {name} | {accuracy} | {agreement} | {arm['parameters']:,} | {size} | {latency} |"


def _class_row(row: Mapping[str, Any]) -> str:
    scores = f"{row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f}"
    return f"| {_cell(row['label'])} | {scores} | {row['support']:,} |"


def _front_matter(report: Mapping[str, Any], spec: ResolvedSpec) -> str:
    """What the Hugging Face Hub reads. Strings are written as JSON, which is YAML."""
    teacher = spec.teachers[0]
    base = teacher.model if isinstance(teacher, LocalTeacher) else ""
    lines = [
        "library_name: transformers",
        f"pipeline_tag: {spec.task.kind}",
        'tags: ["knowledge-distillation", "onnx", "limbeck"]',
    ]
    if base.startswith("hub:"):
        lines.append(f"base_model: {json.dumps(base.removeprefix('hub:').partition('@')[0])}")
    distilled = report["arms"]["distilled"]
    lines += [
        "model-index:",
        f"- name: {json.dumps(spec.name or 'distilled student')}",
        "  results:",
        f"  - task: {{type: {spec.task.kind}}}",
        f'    dataset: {{name: {json.dumps(_dataset(spec))}, type: "private"}}',
        "    metrics:",
        f"    - {{type: accuracy, value: {distilled['accuracy']:.4f}}}",
        f"    - {{type: f1, name: Macro F1, value: {distilled['macro_f1']:.4f}}}",
    ]
    return "\n".join(lines)


def _dataset(spec: ResolvedSpec) -> str:
    dataset = spec.dataset.model_dump()
    return str(dataset.get("id") or dataset.get("test"))


def _cell(text: str) -> str:
    """`text` where Markdown must not take it for a table's edge, a code's end or a new line."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


# --- networks ---------------------------------------------------------------------------------------------------------


class _Answers(nn.Module):
    """A network that takes tensors by position and gives logits (B, C): the form that the exporter wants."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        types = getattr(network.config, "type_vocab_size", 0) or 0
        # A network with one type adds the same row to every token: the input could only be left out or be wrong.
        self.inputs = ("input_ids", "attention_mask", "token_type_ids")[: 3 if types > 1 else 2]
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask, **given).logits
        return logits


def _on_cpu(network: Any) -> Any:
    """A copy that may be changed: on the CPU, float32, in evaluation mode, with plain attention.

    Exported from the fused attention kernel the graph has more nodes and is no faster.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    network.set_attn_implementation("eager")
    return network


def _without_origins(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without the exporter's notes on each node: half of a small file, and full of this machine's paths."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    return model


def _mismatch(what: str) -> JobFailure:
    return JobFailure(
        f"{what}, so the student that would be served is not the one that was trained",
        code="export_mismatch",
        hint="this is a fault of the exporter with this architecture: choose another one, and report it",
    )


def _plain(logits: NDArray[np.float32]) -> list[list[float]]:
    return [[round(float(value), 6) for value in row] for row in logits]


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n", "utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, which are about their own insides. Errors are raised, not logged."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
