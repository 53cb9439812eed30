"""What stands on the other side of the client in its tests: a spec that is accepted, a worker that is a script."""

from typing import Any

from models import lifecycle
from tests.service import Service


def spec_of(dataset: str, **more: Any) -> dict[str, Any]:
    """A job spec that the service accepts."""
    return {
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": dataset},
        "teachers": [{"kind": "local", "model": "hub:some/teacher"}],
        "student": {"kind": "from_teacher", "layers": 1},
        **more,
    }


class ScriptedWorker:
    """What a worker does to a job, without training anything."""

    def __init__(self, service: Service, job_id: str) -> None:
        self._database = service.database
        self._job = job_id

    def claim(self) -> None:
        with self._database.writing() as session:
            assert lifecycle.claim(session, self._job, "wk_test", 60.0) is not None

    def progress(self) -> None:
        losses = [lifecycle.Point("distilled", 0, 0, "loss", step, value) for step, value in ((1, 0.7), (2, 0.6))]
        with self._database.writing() as session:
            lifecycle.record(session, self._job, 1, phase="distil", progress=0.5, eta=12.0, metrics=losses)

    def say(self, words: str) -> None:
        with self._database.writing() as session:
            lifecycle.record(session, self._job, 1, events=[lifecycle.Happening("note", words, {})])

    def fail(self) -> None:
        with self._database.writing() as session:
            lifecycle.fail(
                session,
                self._job,
                1,
                code="diverged",
                message="the loss is not finite",
                hint="lower the learning rate",
            )
