"""The model card: what a student is, how good it is, and how to use it, for somebody who was not there.

Says what stands in the report and the spec, and measures nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.errors import JobFailure
from models.gates import metric_words
from models.runtime import FILES
from models.specs import (
    LocalTeacher,
    QuestionAnswering,
    ResolvedSpec,
    Task,
    TextClassification,
    TextRegression,
    TokenClassification,
)
from worker.provenance import Provenance, section

Arm = Mapping[str, Any]


class _Metric(NamedTuple):
    words: str
    hub: str
    """Its type on the Hugging Face Hub."""


_METRICS: Mapping[str, _Metric] = {
    "accuracy": _Metric("accuracy", "accuracy"),
    "micro_f1": _Metric("micro-F1", "f1"),
    "macro_f1": _Metric("macro-F1", "f1"),
    "f1": _Metric("F1", "f1"),
    "exact_match": _Metric("exact match", "exact_match"),
    "exact": _Metric("exact match", "exact_match"),
    "matthews": _Metric("Matthews", "matthews_correlation"),
    "pearson": _Metric("Pearson", "pearsonr"),
    "spearman": _Metric("Spearman", "spearmanr"),
    "mse": _Metric("mean squared error", "mse"),
}
_FILES = """\
`golden.json` has a few inputs with their answers to compare with, `report.json` all that was measured,
`manifest.json` the SHA-256 of every file."""
_WEAKEST = 5
_SHARES = {"accuracy", "exact_match", "exact"}
"""Metrics that are shares of the rows, which are shown in percent."""


def write_card(folder: Path, report: Mapping[str, Any], spec: ResolvedSpec, made: Provenance) -> None:
    """Write `README.md`: the card, and where the student comes from."""
    (folder / "README.md").write_text(f"{card(report, spec)}\n{section(made)}", "utf-8")


def card(report: Mapping[str, Any], spec: ResolvedSpec) -> str:
    """The card of the student that `report` is about, in Markdown, with what the Hugging Face Hub reads at its head."""
    rows, precision = report["rows"], report["precision"]
    what, cut = _described(spec.task)
    seen = (
        f"On {rows['test']:,} test rows, which neither training ({rows['train']:,} rows) nor the choice of the best "
        f"epoch ({rows['validation']:,} rows)\nhas seen. *Control* is the same student trained on the labels without "
        "the teacher; *untrained* is the student before its\ntraining. Latency is that of one input on one thread of "
        f"{report['host']['cpu'] or 'this host'}, tokenization included."
    )
    parts = [
        f"---\n{_front_matter(report, spec)}\n---",
        f"# {_cell(spec.name or 'Distilled student')}",
        f"{what}, made by knowledge distillation. {report['verdict']}",
        f"{_labels(report, spec.task)}{cut}",
        "## Results",
        seen,
        _table(report),
        f"Served at {precision['served']}: {precision['reason']}",
    ]
    if report["warnings"]:
        parts += ["What the job warned of:", "\n".join(f"- {_cell(one['message'])}" for one in report["warnings"])]
    if report["gate"]["checks"]:
        parts += ["What its gate asked for:", "\n".join(f"- {check['reason']}" for check in report["gate"]["checks"])]
    if report["arms"]["distilled"]["per_class"]:
        parts += ["Label by label, the distilled student:", _classes(report["arms"]["distilled"])]
    lost = [one for one in report["slices"] if one["drop"] is not None and one["drop"]["value"] > 0]
    weakest = sorted(lost, key=lambda one: -one["drop"]["value"])[:_WEAKEST]
    if weakest:
        parts += [_worst_first(report, len(weakest)), _slices(weakest, report["metric"])]
    parts += ["## Use", *_usage(spec, precision["served"])]
    parts += [
        _FILES,
        "## How it was made",
        "The spec of the job, every default filled in:",
        _code("json", json.dumps(spec.model_dump(mode="json", exclude_none=True), indent=1)),
    ]
    return "\n\n".join(parts) + "\n"


def _described(task: Task) -> tuple[str, str]:
    """What such a student is, and what becomes of long inputs."""
    cut = "Texts longer than {} tokens are cut."
    match task:
        case TextClassification(multi_label=True, max_length=most):
            return "A small text classifier that gives a text any number of labels", cut.format(most)
        case TextClassification(max_length=most):
            return "A small text classifier", cut.format(most)
        case TextRegression(max_length=most):
            return "A small network that gives texts a number", cut.format(most)
        case TokenClassification(max_length=most):
            return "A small tagger of words", cut.format(most)
        case QuestionAnswering(max_length=most):
            windows = f"Longer contexts are read in windows of {most} tokens, the question included."
            return "A small network that finds the answer to a question in a text", windows
        case _:
            raise _unavailable(task)


def _labels(report: Mapping[str, Any], task: Task) -> str:
    if isinstance(task, TextRegression) or not report["labels"]:
        return ""
    return f"Labels: {', '.join(f'`{_cell(label)}`' for label in report['labels'])}. "


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(report: Mapping[str, Any]) -> str:
    """Every network that was measured, a row each; the main metric first."""
    metric, arms = report["metric"], report["arms"]
    names = [metric, *(name for name in _METRICS if name != metric and name in arms["distilled"])]
    interval = metric == "accuracy"
    shown = {name: arms[name] for name in ("teacher", "distilled", "control", "untrained") if arms.get(name)}
    shown |= report.get("others") or {}
    if report.get("constant"):
        shown["constant answer"] = report["constant"]
    titles = [_title(name) for name in names]
    if interval:
        titles.insert(1, "95 % interval")
    titles += ["agrees with teacher", "parameters", "file", "p50"]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'--:|' * len(titles)}"]
    for name, one in shown.items():
        cells = [_value(key, one.get(key)) for key in names]
        if interval:
            low, high = one.get("accuracy_interval") or (None, None)
            cells.insert(1, "" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f} %")
        lines.append(f"| {_cell(name)} | {' | '.join([*cells, *_costs(one)])} |")
    return "\n".join(lines)


def _title(metric: str) -> str:
    return _METRICS[metric].words if metric in _METRICS else metric_words(metric)


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if metric in _SHARES else f"{value:.3f}"


def _costs(one: Arm) -> list[str]:
    """Agreement, parameters, file and latency, as far as they are known."""
    agreement, count, size = one.get("agreement"), one.get("parameters"), one.get("bytes")
    p50 = ((one.get("precisions") or {}).get(one.get("served")) or {}).get("p50_ms")
    return [
        "" if agreement is None else f"{100 * agreement:.1f} %",
        "" if count is None else f"{count:,}",
        "" if size is None else f"{size / 1e6:.1f} MB",
        "" if p50 is None else f"{p50:.2f} ms",
    ]


def _classes(distilled: Arm) -> str:
    lines = ["| label | precision | recall | 95 % interval | F1 | rows |", "|---|--:|--:|--:|--:|--:|"]
    for row in distilled["per_class"]:
        low, high = row["recall_interval"] or (None, None)
        interval = "" if low is None or high is None else f"{low:.3f} – {high:.3f}"
        scores = f"{row['precision']:.3f} | {row['recall']:.3f} | {interval} | {row['f1']:.3f}"
        lines.append(f"| {_cell(row['label'])} | {scores} | {row['support']:,} |")
    return "\n".join(lines)


def _worst_first(report: Mapping[str, Any], shown: int) -> str:
    """What stands above the slices. Of many the worst looks bad by chance, and it should say so."""
    parts = report["slices"]
    few = sum(one["drop"] is None for one in parts)
    words = f"Where the student loses most against its teacher, {shown} of {len(parts)} parts of the test rows"
    words += f"; {few} of them have too few rows for an interval" if few else ""
    return f"{words}. The worst of many parts looks worse than it is: judge by the interval."


def _slices(parts: Sequence[Mapping[str, Any]], metric: str) -> str:
    unit = ", points" if metric in _SHARES else ""
    interval = f"{100 * parts[0]['drop']['confidence']:g} % interval"
    lines = [f"| part | rows | teacher | distilled | drop{unit} | {interval} |", "|---|--:|--:|--:|--:|--:|"]
    for one in parts:
        drop = one["drop"]
        cells = [_cell(f"{one['name']}: {one['value']}"), f"{one['rows']:,}"]
        cells += [_value(metric, one["arms"][arm]) for arm in ("teacher", "distilled")]
        value, low, high = (_difference(metric, drop[name]) for name in ("value", "low", "high"))
        lines.append(f"| {' | '.join([*cells, value, f'{low} to {high}'])} |")
    return "\n".join(lines)


def _difference(metric: str, value: float) -> str:
    return (f"{100 * value:.1f}" if metric in _SHARES else f"{value:.3f}").replace("-", "−")


# --- usage ------------------------------------------------------------------------------------------------------------


def _usage(spec: ResolvedSpec, served: str) -> list[str]:
    """Paragraphs with code that runs as it stands, in the folder of the card."""
    parts = ["With transformers:", _code("python", _with_transformers(spec.task))]
    if isinstance(spec.task, TextClassification) and not spec.task.multi_label and spec.task.text_pair is None:
        runtime = _RUNTIME.format(max_length=spec.task.max_length, file=FILES[served])
        parts += ["As it is served, with onnxruntime, tokenizers and numpy alone:", _code("python", runtime)]
    name = spec.promote.deployment if spec.promote is not None else "NAME"
    body = json.dumps({"inputs": _example(spec.task)})
    call = (
        f'curl "$LIMBECK_URL/predict/{name}" -H "Authorization: Bearer $LIMBECK_API_KEY" \\\n'
        f"  -H \"Content-Type: application/json\" -d '{body}'"
    )
    where = f"the deployment `{name}`" if spec.promote is not None else "a deployment"
    return [*parts, f"From {where} of a running service:", _code("sh", call)]


def _example(task: Task) -> Any:
    """An input as `/predict` takes it."""
    match task:
        case QuestionAnswering():
            return {"question": "Who wrote it?", "context": "It was written by Ada."}
        case TextClassification() | TextRegression() if task.text_pair is not None:
            return {"text": "a text", "text_pair": "another text"}
        case _:
            return "a text"


def _with_transformers(task: Task) -> str:
    match task:
        case TextClassification():
            return _PIPELINE.format(task="text-classification", options="top_k=None", input=_python(task))
        case TextRegression():
            return _PIPELINE.format(task="text-classification", options='function_to_apply="none"', input=_python(task))
        case TokenClassification():
            return _PIPELINE.format(
                task="token-classification", options='aggregation_strategy="first"', input=_python(task)
            )
        case QuestionAnswering():
            return _ANSWER.format(max_length=task.max_length)
        case _:
            raise _unavailable(task)


def _python(task: Task) -> str:
    # Strings and objects of strings are the same in JSON and in Python.
    return json.dumps(_example(task))


_PIPELINE = """\
from transformers import pipeline

ask = pipeline("{task}", model=".", {options})
print(ask({input}))"""

# transformers has no pipeline for this task any more. One window; the service reads as many as the context needs.
_ANSWER = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
network = AutoModelForQuestionAnswering.from_pretrained(".").eval()

question, context = "Who wrote it?", "It was written by Ada."
text = tokenizer(
    question, context, truncation="only_second", max_length={max_length},
    return_offsets_mapping=True, return_tensors="pt",
)
offsets = text.pop("offset_mapping")[0].tolist()
with torch.inference_mode():
    logits = network(**text)
outside = torch.tensor([part != 1 for part in text.sequence_ids()])
start, end = (side[0].masked_fill(outside, -torch.inf) for side in (logits.start_logits, logits.end_logits))
scores = start[:, None] + end[None, :]
backwards = torch.ones_like(scores).tril(-1).bool()
first, last = divmod(int(scores.masked_fill(backwards, -torch.inf).argmax()), len(start))
print(context[offsets[first][0] : offsets[last][1]])"""

_RUNTIME = """\
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
print(labels[str(logits.argmax())])"""


# --- the head ---------------------------------------------------------------------------------------------------------


def _front_matter(report: Mapping[str, Any], spec: ResolvedSpec) -> str:
    """What the Hugging Face Hub reads. Strings are written as JSON, which is YAML."""
    teacher = spec.teachers[0]
    base = teacher.model if isinstance(teacher, LocalTeacher) else ""
    # The Hub has no task of its own for numbers of texts.
    task = "text-classification" if isinstance(spec.task, TextRegression) else spec.task.kind
    lines = [
        "library_name: transformers",
        f"pipeline_tag: {task}",
        'tags: ["knowledge-distillation", "onnx", "limbeck"]',
    ]
    if base.startswith("hub:"):
        lines.append(f"base_model: {json.dumps(base.removeprefix('hub:').partition('@')[0])}")
    distilled, metric = report["arms"]["distilled"], report["metric"]
    names = [metric, *(name for name in _METRICS if name != metric and name in distilled)]
    lines += [
        "model-index:",
        f"- name: {json.dumps(spec.name or 'distilled student')}",
        "  results:",
        f"  - task: {{type: {task}}}",
        f'    dataset: {{name: {json.dumps(_dataset(spec))}, type: "private"}}',
        "    metrics:",
        *(f"    - {{type: {_hub(name)}, name: {_title(name)}, value: {distilled[name]:.4f}}}" for name in names),
    ]
    return "\n".join(lines)


def _hub(metric: str) -> str:
    return _METRICS[metric].hub if metric in _METRICS else metric


def _dataset(spec: ResolvedSpec) -> str:
    dataset = spec.dataset.model_dump()
    return str(dataset.get("id") or dataset.get("test"))


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _cell(text: str) -> str:
    """`text` where Markdown must not take it for a table's edge, a code's end or a new line."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _unavailable(task: Task) -> JobFailure:
    return JobFailure(f"{task.kind!r} is not available in this version", code="not_available_yet", pointer="/task/kind")
