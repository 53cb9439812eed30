"""A few steps before the long work: they find what cannot run, take time, and leave everything as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import JobFailure
from models.specs import parse_job, resolve
from tests.factories import tiny_dataset, tiny_teacher, tiny_tokens_dataset
from worker.asking import make_accelerator
from worker.cache import HostCache
from worker.checkpoints import Checkpoints
from worker.protocol import Assignment
from worker.rehearsal import rehearse
from worker.run import Run
from worker.stages import build_student, original_of
from worker.tasks import for_task
from worker.teaching import open_voices

TEXT = {"kind": "text-classification", "text": "text", "label": "label", "max_length": 32}
WORDS = {"kind": "token-classification", "tokens": "tokens", "tags": "tags", "max_length": 32}


def a_run(folder: Path, task: dict[str, Any], method: str) -> Run:
    tiny_teacher(folder / "models" / "tiny", labels=None, layers=4)
    spec = resolve(
        parse_job(
            {
                "task": task,
                "dataset": {"id": "ds_1", "validation": 40, "test": 40},
                "teachers": [{"kind": "local", "model": "file:tiny", "fine_tune": {}}],
                "student": {"kind": "from_teacher", "layers": 2, "vocabulary": 150},
                "method": method,
                "schedule": {"batch_tokens": 256},
            }
        )
    )
    make = tiny_dataset if task is TEXT else tiny_tokens_dataset
    assignment = Assignment(
        job_id="job_1",
        attempt=1,
        spec=spec,
        datasets={"ds_1": make(folder, 240)},
        models_folder=folder / "models",
        work=folder / "work",
        cache=folder / "cache",
        cache_bytes=10**9,
        tick_timeout=60,
    )
    kind = for_task(spec.task)
    data = kind.read(spec.dataset, assignment.datasets, seed=0)
    checkpoints = Checkpoints(folder / "work", [])
    return Run(
        assignment,
        _Silent(),
        kind,
        data,
        make_accelerator("cpu"),
        checkpoints,
        HostCache(assignment.cache, 10**9),
        deadline=None,
    )


class _Silent:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_more: self.heard.append(name) if name != "stop_requested" else None


@pytest.mark.parametrize(("task", "method"), [(TEXT, "hinton"), (TEXT, "tinybert"), (WORDS, "minilm")])
def test_it_takes_time_and_changes_nothing(tmp_path: Path, task: dict[str, Any], method: str) -> None:
    run = a_run(tmp_path, task, method)
    original = original_of(run, open_voices(run))
    student = build_student(run, run.spec.stages[0].student, original, 0)
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    assert original is not None
    seconds = rehearse(run, student, run.spec.stages[0].phases, original.network)
    assert 0 < seconds < 600
    after = student.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in student.network.modules())
    assert not any(module._forward_hooks for module in original.network.modules())
    assert isinstance(run.report, _Silent)
    assert set(run.report.heard) <= {"stop_requested"}
    assert not list((tmp_path / "work").glob("*/*.safetensors"))


def test_what_cannot_be_trained_is_known_before(tmp_path: Path) -> None:
    run = a_run(tmp_path, TEXT, "hinton")
    original = original_of(run, open_voices(run))
    student = build_student(run, run.spec.stages[0].student, original, 0)
    with torch.no_grad():
        student.network.classifier.weight.fill_(float("nan"))
    with pytest.raises(JobFailure) as caught:
        rehearse(run, student, run.spec.stages[0].phases, None)
    assert caught.value.code == "diverged"
