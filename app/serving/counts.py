"""What this process has seen of each arm of each deployment: a lock and a few additions for a call. It knows no
database: a thread asks for the totals once a second and puts them down.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from app.serving.shelf import Pointer
from models.figures import BOUNDS, Arm, Total, bucket

_FORGET_SECONDS = 600.0

_Key = tuple[str, int, Arm]
"""Deployment, version, arm."""


@dataclass(slots=True)
class _Cell:
    student_id: str
    calls: int = 0
    inputs: int = 0
    errors: int = 0
    compared: int = 0
    agreed: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    changed: bool = True
    touched_at: float = 0.0


class Counts:
    """Totals since the process began. Any thread may call anything."""

    def __init__(self, *, forget_after: float = _FORGET_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.process = uuid.uuid4().hex
        """The name under which these totals are put down."""
        self._forget_after = forget_after
        self._clock = clock
        self._lock = threading.Lock()
        self._cells: dict[_Key, _Cell] = {}

    def note(
        self,
        pointer: Pointer,
        arm: Arm,
        student_id: str,
        *,
        inputs: int = 0,
        seconds: float | None = None,
        error: bool = False,
        compared: int = 0,
        agreed: int = 0,
    ) -> None:
        """Count a call: the inputs that `student_id` answered in `seconds`, or with `error` that it did not answer.

        Of the inputs `compared` were answered by the stable student too, and `agreed` of them alike. A note of nothing
        but a comparison is no call, for the call itself was noted when it was answered; to a shadow each note is one.
        """
        key = (pointer.deployment_id, pointer.version, arm)
        call = arm == "shadow" or inputs > 0 or seconds is not None or error
        index = None if seconds is None else bucket(seconds)
        now = self._clock()
        with self._lock:
            cell = self._cells.get(key)
            if cell is None:
                cell = self._cells[key] = _Cell(student_id)
            cell.calls += call
            cell.inputs += 0 if error else inputs
            cell.errors += error
            cell.compared += compared
            cell.agreed += agreed
            if index is not None:
                cell.latency[index] += 1
            cell.changed = True
            cell.touched_at = now

    def totals(self) -> list[Total]:
        """Those that changed since this was last asked. What cannot be put down is given back with `unwritten`."""
        with self._lock:
            self._forget_old()
            changed = [(key, cell) for key, cell in self._cells.items() if cell.changed]
            for _, cell in changed:
                cell.changed = False
            return [_total(key, cell) for key, cell in changed]

    def unwritten(self, totals: Iterable[Total]) -> None:
        """These were not put down: their arms are asked for again."""
        with self._lock:
            for total in totals:
                cell = self._cells.get((total.deployment_id, total.version, total.arm))
                if cell is not None:
                    cell.changed = True

    def forget(self, deployment_ids: Iterable[str]) -> None:
        """Drop deployments that were deleted."""
        gone = set(deployment_ids)
        with self._lock:
            for key in [key for key in self._cells if key[0] in gone]:
                del self._cells[key]

    def _forget_old(self) -> None:
        """Drop earlier versions that were put down and that no call in flight can reach any more. The lock is held.

        The newest version of a deployment stays however quiet it is: it would begin again at nothing, and its row with
        it.
        """
        newest: dict[str, int] = {}
        for deployment_id, version, _ in self._cells:
            newest[deployment_id] = max(version, newest.get(deployment_id, version))
        before = self._clock() - self._forget_after
        old = [
            key
            for key, cell in self._cells.items()
            if key[1] < newest[key[0]] and not cell.changed and cell.touched_at < before
        ]
        for key in old:
            del self._cells[key]


def _total(key: _Key, cell: _Cell) -> Total:
    deployment_id, version, arm = key
    return Total(
        deployment_id=deployment_id,
        version=version,
        arm=arm,
        student_id=cell.student_id,
        calls=cell.calls,
        inputs=cell.inputs,
        errors=cell.errors,
        compared=cell.compared,
        agreed=cell.agreed,
        latency=list(cell.latency),
    )
