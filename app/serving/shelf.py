"""Which students are loaded, and which of them answers for a deployment. It knows no database and no HTTP.

It is given two ways to learn: `open_student(student_id)` loads one, `pointers()` lists where every deployment points.
A thread asks `pointers()` several times a second, so that a deployment which moved anywhere moves here within one.

A deployment never has a moment without an answer: the old student answers until the new one is loaded and gives the
answers on record for its golden inputs. If it does not, the old one stays, and the log says so. The students that a
deployment's traffic names beside it, its candidates, are loaded too, and nobody waits for them. Loaded students have a
budget of memory; those that answered least recently go, and come back with the next request.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import structlog

from models.errors import LimbeckError, Missing, Unavailable
from models.runtime import Runtime
from models.specs.deployments import Traffic, teacher_of

_RETRY_DAMAGED_SECONDS = 15.0
_OVERHEAD_BYTES = 8 * 1024**2  # a tokenizer and a session beside the weights
NO_TRAFFIC = Traffic()

log = structlog.get_logger("limbeck.shelf")


@dataclass(frozen=True)
class Pointer:
    """Where a deployment points. `version` grows with every move."""

    deployment_id: str
    owner: str
    name: str
    student_id: str
    version: int
    traffic: Traffic = NO_TRAFFIC

    @property
    def key(self) -> tuple[str, str]:
        return self.owner, self.name

    @cached_property
    def is_plain(self) -> bool:
        """Whether nothing happens to a call beside the answer of its student."""
        traffic = self.traffic
        return all(one is None for one in (traffic.canary, traffic.shadow, traffic.fallback, traffic.capture))

    @cached_property
    def fallback_id(self) -> str | None:
        """Whom the shelf loads for the fallback: another student, or the teacher of this one, `st_…/teacher`."""
        fallback = self.traffic.fallback
        return None if fallback is None else fallback.asked(self.student_id)

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """Whom its traffic names beside its student."""
        beside = [one.student for one in (self.traffic.canary, self.traffic.shadow) if one is not None]
        return (*beside, self.fallback_id) if self.fallback_id is not None else tuple(beside)


@dataclass
class Loaded:
    """A student in memory."""

    student_id: str
    runtime: Runtime
    used_at: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        return self.runtime.bytes + _OVERHEAD_BYTES


class Shelf:
    def __init__(
        self,
        open_student: Callable[[str], Runtime],
        pointers: Callable[[], Iterable[Pointer]],
        *,
        budget_bytes: int,
        interval: float = 0.25,
    ) -> None:
        self._open_student = open_student
        self._pointers = pointers
        self._budget = budget_bytes
        self._interval = interval
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._loaded: dict[str, Loaded] = {}
        self._serving: dict[tuple[str, str], Pointer] = {}
        self._damaged: dict[str, float] = {}
        self._asked_for: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="shelf", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def loaded(self) -> list[str]:
        """Ids of the students in memory."""
        return list(self._loaded)

    def pointer(self, owner: str, name: str) -> Pointer | None:
        """Where a deployment points, if that is known, as it almost always is. Never blocks."""
        return self._serving.get((owner, name))

    def find(self, owner: str, name: str) -> Pointer:
        """Where a deployment points, learned anew if need be. Blocks. Raises `Missing` if there is none."""
        if (owner, name) not in self._serving:
            self.refresh()
        pointer = self._serving.get((owner, name))
        if pointer is None:
            raise Missing(f"there is no deployment {name[:64]!r}")
        return pointer

    def at_hand(self, student_id: str) -> Loaded | None:
        """A student, if it is in memory, as one that is deployed almost always is. Never blocks."""
        loaded = self._loaded.get(student_id)
        if loaded is not None:
            loaded.used_at = time.monotonic()
        return loaded

    def ask_for(self, student_id: str) -> bool:
        """Have a student loaded soon. Never blocks. False: it could not be loaded a moment ago."""
        self._asked_for.add(student_id)
        return not self._is_damaged(student_id)

    def fetch(self, student_id: str) -> Loaded:
        """A student, loaded if need be. Blocks. Raises `Unavailable` (code `student_unhealthy`) if it cannot serve."""
        unhealthy = Unavailable("the student of this deployment cannot serve", code="student_unhealthy", retry_after=5)
        found = self.at_hand(student_id)
        if found is None and self._is_damaged(student_id):
            raise unhealthy
        try:
            return found or self.load(student_id)
        except LimbeckError as error:
            raise unhealthy from error

    def load(self, student_id: str) -> Loaded:
        """A student that gives the answers on record for its golden inputs. Blocks; of many callers one loads.

        Raises what opening it raises, `ArtifactDamaged` among it.
        """
        with self._lock:
            lock = self._loading.setdefault(student_id, threading.Lock())
        with lock:
            found = self._loaded.get(student_id)
            if found is None:
                found = self._open(student_id)
            found.used_at = time.monotonic()
        return found

    def point(self, pointer: Pointer) -> None:
        """Let `pointer` take effect now; its student was loaded before. An older version changes nothing."""
        with self._lock:
            current = self._serving.get(pointer.key)
            if current is None or current.deployment_id != pointer.deployment_id or current.version < pointer.version:
                self._serving[pointer.key] = pointer

    def refresh(self) -> None:
        """Learn where every deployment points, and follow."""
        with self._refreshing:
            before = dict(self._serving)
            wanted = {pointer.key: pointer for pointer in self._pointers()}
            for key, pointer in wanted.items():
                current = before.get(key)
                if (
                    current is None
                    or current.student_id == pointer.student_id
                    or self._is_ready(pointer.student_id, pointer.name)
                ):
                    self.point(pointer)
            with self._lock:
                for key, pointer in before.items():
                    if key not in wanted and self._serving.get(key) == pointer:
                        del self._serving[key]

    def forget(self, student_id: str) -> None:
        """Drop a student that was deleted, and its teacher."""
        with self._lock:
            for one in (student_id, teacher_of(student_id)):
                self._loaded.pop(one, None)

    def _open(self, student_id: str) -> Loaded:
        try:
            runtime = self._open_student(student_id)
            runtime.check_golden()
        except BaseException:
            self._damaged[student_id] = time.monotonic() + _RETRY_DAMAGED_SECONDS
            raise
        loaded = Loaded(student_id, runtime)
        with self._lock:
            self._loaded[student_id] = loaded
            self._loading.pop(student_id, None)
            self._damaged.pop(student_id, None)
            self._make_room(loaded)
        return loaded

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self.refresh()
                self._preload()
            except Exception as error:  # noqa: BLE001 - a database that is away must not end this thread
                log.warning("deployments were not read", error=type(error).__name__)
            self._stopping.wait(self._interval)

    def _preload(self) -> None:
        """Load what is deployed before anybody asks, as far as the budget goes, and what was asked for beyond it."""
        pointers = list(self._serving.values())
        wanted = {pointer.student_id: pointer.name for pointer in pointers}
        for pointer in pointers:
            for student_id in pointer.candidates:
                wanted.setdefault(student_id, pointer.name)
        asked_for, self._asked_for = self._asked_for, set()
        for student_id, name in wanted.items():
            full = sum(loaded.bytes for loaded in list(self._loaded.values())) >= self._budget * 0.8
            if self._stopping.is_set():
                return
            if student_id not in self._loaded and (student_id in asked_for or not full):
                self._is_ready(student_id, name)

    def _is_ready(self, student_id: str, name: str) -> bool:
        """Whether a student of the deployment `name` is loaded and well."""
        if self._is_damaged(student_id):
            return False
        try:
            self.load(student_id)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others keep answering
            reason = error.message if isinstance(error, LimbeckError) else type(error).__name__
            log.warning("a student cannot serve", deployment=name, student=student_id, reason=reason)
            return False
        return True

    def _is_damaged(self, student_id: str) -> bool:
        """Whether it could not serve a moment ago: it is tried again only after a while."""
        return self._damaged.get(student_id, 0.0) > time.monotonic()

    def _make_room(self, newest: Loaded) -> None:
        """Drop the least recently used others until the rest fit. The lock is held."""
        total = sum(loaded.bytes for loaded in self._loaded.values())
        for loaded in sorted(self._loaded.values(), key=lambda loaded: loaded.used_at):
            if total <= self._budget:
                return
            if loaded is not newest:
                del self._loaded[loaded.student_id]
                total -= loaded.bytes
