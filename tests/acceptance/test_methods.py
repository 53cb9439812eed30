"""Every method on every kind of task, and every procedure, through the API; each student opens without its teacher.

A service of two processes and tiny networks. What is judged here is that the whole way works; what a method is worth
is for `benchmarks/`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

from limbeck import Client
from models.settings import Settings
from tests import factories
from tests.processes import processes

PRESETS = ("hinton", "fitnets", "attention-transfer", "tinybert", "minilm")
TEXT = {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32}
TASKS: dict[str, dict[str, Any]] = {
    "text": TEXT,
    "pair": {**TEXT, "text_pair": "text_pair"},
    "labels": {**TEXT, "label": "labels", "multi_label": True},
    "number": {"kind": "text-regression", "text": "text", "target": "score", "max_length": 32},
    "words": {"kind": "token-classification", "tokens": "tokens", "tags": "tags", "max_length": 32},
    "questions": {
        "kind": "question-answering",
        "question": "question",
        "context": "context",
        "answers": "answers",
        "max_length": 32,
        "stride": 8,
    },
}
METRICS = {
    "text": "accuracy",
    "pair": "accuracy",
    "labels": "micro_f1",
    "number": "pearson",
    "words": "f1",
    "questions": "f1",
}
CLASSES = {
    **dict.fromkeys(("text", "pair", "labels", "number"), "AutoModelForSequenceClassification"),
    "words": "AutoModelForTokenClassification",
    "questions": "AutoModelForQuestionAnswering",
}
INPUTS: dict[str, Any] = {
    **dict.fromkeys(("text", "labels", "number", "words"), "a great and lovely day"),
    "pair": {"text": "a great day", "text_pair": "a sad day"},
    "questions": {"question": "what was good", "context": "the film was good and the food was bad"},
}
SCHEDULE = {"epochs": 1, "learning_rate": 2e-3, "batch_tokens": 512}
TEACHER = {"kind": "local", "model": "file:tiny", "fine_tune": {**SCHEDULE, "epochs": 3}, "at_chance": True}
STUDENT = {"kind": "from_teacher", "layers": 2}
# A diagonal of the matrix, so that each task and each preset is tried at every run of the tests; the rest is long.
EVERY_TIME = {
    *(("text", "tinybert"), ("pair", "minilm"), ("labels", "attention-transfer"), ("number", "hinton")),
    *(("words", "fitnets"), ("questions", "hinton")),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, dict[str, str]]]:
    """A client, and the id of each task's dataset."""
    data = tmp_path_factory.mktemp("service")
    settings = Settings(data_dir=data)
    factories.tiny_teacher(settings.models_folder / "tiny", labels=None, layers=4)
    files = {
        "text": factories.tiny_dataset(data / "rows", 240),
        "pair": factories.tiny_pairs(data / "rows"),
        "labels": factories.tiny_label_sets(data / "rows"),
        "number": factories.tiny_numbers(data / "rows"),
        "words": factories.tiny_tokens_dataset(data / "rows"),
        "questions": factories.tiny_questions_dataset(data / "rows"),
        "recorded": _recorded(data / "rows" / "recorded.parquet"),
    }
    with processes(settings) as client:
        yield client, {name: client.datasets.upload(file, name=name).id for name, file in files.items()}


def _recorded(path: Path) -> Path:
    """Texts with answers that somebody's network gave: sure of the label, in an order of their own."""
    texts, names = factories.tiny_rows(240)
    order = ["positive", "negative", "neutral"]
    answers = [[0.8 if label == name else 0.1 for label in order] for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, "label": names, "answers": answers}), path)
    return path


def _run(client: Client, dataset: str, task: str, folder: Path, **change: Any) -> dict[str, Any]:
    """Submit, wait, download, open, deploy, predict; the report."""
    spec = {
        "task": TASKS[task],
        "dataset": {"id": dataset, "validation": 40, "test": 60},
        "teachers": [TEACHER],
        **({} if "stages" in change else {"student": STUDENT, "schedule": SCHEDULE}),
        **change,
    }
    job = client.jobs.wait(client.jobs.submit(spec).id, timeout=180)
    assert job.status == "succeeded", job.error
    assert job.student_id is not None
    report = client.students.report(job.student_id)
    assert report["metric"] == METRICS[task]
    assert report["arms"]["control"] is not None
    client.students.download(job.student_id, folder)
    network = getattr(transformers, CLASSES[task]).from_pretrained(folder)
    assert network.num_parameters() == report["arms"]["distilled"]["parameters"]
    client.deployments.put("tiny", job.student_id)
    answer = client.predict("tiny", INPUTS[task])
    assert answer.student == job.student_id
    return report


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("task", "preset"),
    [
        pytest.param(task, preset, marks=[] if (task, preset) in EVERY_TIME else [pytest.mark.long])
        for task in TASKS
        for preset in PRESETS
    ],
)
def test_every_method_on_every_task(
    service: tuple[Client, dict[str, str]], tmp_path: Path, task: str, preset: str
) -> None:
    client, datasets = service
    report = _run(client, datasets[task], task, tmp_path / "student", method=preset)
    assert report["counters"]["student_training_steps"] > 0


def _stage(layers: int, **more: Any) -> dict[str, Any]:
    return {"student": {"kind": "from_teacher", "layers": layers}, "schedule": SCHEDULE, **more}


PROCEDURES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "an ensemble": (
        "text",
        {"teachers": [TEACHER, {**TEACHER, "weight": 2.0, "fine_tune": {**SCHEDULE, "epochs": 2}}]},
        {"teacher 1", "teacher 2"},
    ),
    "a chain": ("text", {"stages": [_stage(3), _stage(2, method="tinybert")]}, {"stage 1", "direct"}),
    "generations": (
        "text",
        {"teachers": [{"kind": "self", "generations": 2, "model": "file:tiny"}]},
        {"generation 1"},
    ),
    "a moving average": ("text", {"teachers": [{"kind": "self", "ema": 0.9, "model": "file:tiny"}]}, set()),
    "recorded answers": (
        "recorded",
        {
            "teachers": [
                {"kind": "recorded", "probabilities": "answers", "labels": ["positive", "negative", "neutral"]}
            ],
            "student": {"kind": "pretrained", "model": "file:tiny"},
        },
        set(),
    ),
    "a narrower student": (
        "text",
        {
            "student": {**STUDENT, "hidden_size": 16, "intermediate_size": 32, "vocabulary": 150},
            "method": {"preset": "tinybert", "heads": "averaged"},
        },
        set(),
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.long
@pytest.mark.parametrize("name", PROCEDURES)
def test_every_procedure(service: tuple[Client, dict[str, str]], tmp_path: Path, name: str) -> None:
    client, datasets = service
    dataset, change, others = PROCEDURES[name]
    report = _run(client, datasets[dataset], "text", tmp_path / "student", **change)
    assert set(report["others"]) == others == set(report["comparisons"]["others"])
    if name == "recorded answers":
        assert report["arms"]["teacher"]["score"] == 1.0
        assert report["arms"]["teacher"]["parameters"] is None


@pytest.mark.timeout(240)
def test_a_second_method_asks_the_teacher_nothing(service: tuple[Client, dict[str, str]], tmp_path: Path) -> None:
    client, datasets = service
    for place, method in enumerate(("hinton", "minilm")):
        report = _run(client, datasets["text"], "text", tmp_path / method, method=method, seed=7)
        counters = report["counters"]
        assert (counters["teacher_training_steps"] > 0) == (place == 0)
        assert (counters["teacher_forward_rows"], counters["cached_signal_rows"]) == ((240, 0), (0, 240))[place]
