"""The lease of one attempt, held from a thread of its own, which also stores what the attempt reports.

So neither a long download nor a database that hangs keeps the supervising thread from looking at its trainer, and a
long upload does not cost the lease. Knows no process.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from models import lifecycle
from models.database import Database
from models.errors import Fenced
from models.lifecycle import Claimed, Happening, Point
from models.settings import Settings
from models.tables import JobStatus

_FLUSH_EVERY = 1.0
_LOOK_EVERY = 0.1
_MOST_POINTS = 100_000
"""So many points are kept while the database is away; older ones are dropped first."""

log = structlog.get_logger(__name__)


class Lease:
    """Renews the lease of `claimed` while its `with` block lasts. `on_beat` is called after each renewal.

    `lost` is true once another attempt may begin: the database says so, or it could not be asked for too long.
    """

    def __init__(self, settings: Settings, database: Database, claimed: Claimed) -> None:
        self.status: JobStatus = "running"
        self.on_beat: Callable[[], None] | None = None
        self._settings = settings
        self._database = database
        self._claimed = claimed
        self._log = log.bind(job_id=claimed.job_id, attempt=claimed.attempt)
        self._renewed = time.monotonic()
        self._fenced = False
        self._over = threading.Event()
        self._lock = threading.Lock()  # of what is noted
        self._storing = threading.Lock()  # so that what is noted is stored in order
        self._seen: dict[str, Any] = {}
        self._points: list[Point] = []
        self._happenings: list[Happening] = []
        self._checkpointed = False
        self._thread = threading.Thread(target=self._hold, name=f"lease-{claimed.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=2 * _FLUSH_EVERY)

    @property
    def lost(self) -> bool:
        """Judged by this machine's monotonic clock, so that a database that hangs cannot hide it."""
        return self._fenced or time.monotonic() - self._renewed > self._settings.self_fence_after

    # What the attempt reports. None of these touches the database.

    def saw(self, **values: Any) -> None:
        """`phase`, or `progress` with `eta`: only the latest counts."""
        with self._lock:
            self._seen |= values

    def point(self, point: Point) -> None:
        with self._lock:
            self._points.append(point)
            if len(self._points) > _MOST_POINTS:
                del self._points[: _MOST_POINTS // 10]

    def happened(self, happening: Happening) -> None:
        with self._lock:
            self._happenings.append(happening)

    def checkpointed(self) -> None:
        with self._lock:
            self._checkpointed = True

    def flush(self) -> None:
        """Store what was noted. What cannot be stored now is kept for the next time."""
        with self._storing:
            with self._lock:
                seen, points, happenings, checkpointed = self._seen, self._points, self._happenings, self._checkpointed
                self._seen, self._points, self._happenings, self._checkpointed = {}, [], [], False
            if not (seen or points or happenings or checkpointed):
                return
            job_id, attempt = self._claimed.job_id, self._claimed.attempt
            try:
                with self._database.writing() as session:
                    lifecycle.record(session, job_id, attempt, metrics=points, events=happenings, **seen)
                    if checkpointed:
                        lifecycle.checkpointed(session, job_id, attempt)
            except Fenced:
                self._fenced = True
            except SQLAlchemyError as error:
                self._log.warning("report_not_stored", error=type(error).__name__)
                with self._lock:
                    self._seen = seen | self._seen
                    self._points = (points + self._points)[-_MOST_POINTS:]
                    self._happenings = happenings + self._happenings
                    self._checkpointed = checkpointed or self._checkpointed

    # The thread.

    def _hold(self) -> None:
        next_beat = next_flush = time.monotonic()
        while not self._over.is_set() and not self._fenced:
            now = time.monotonic()
            if now >= next_beat:
                self._beat()
                next_beat = now + self._settings.heartbeat_interval
            if now >= next_flush:
                self.flush()
                next_flush = now + _FLUSH_EVERY
            self._over.wait(min(_LOOK_EVERY, self._settings.heartbeat_interval))

    def _beat(self) -> None:
        # Counted from before the question: the database may have answered it long before we hear.
        asked = time.monotonic()
        try:
            with self._database.writing() as session:
                status = lifecycle.heartbeat(
                    session, self._claimed.job_id, self._claimed.attempt, self._settings.lease_ttl
                )
        except SQLAlchemyError as error:
            self._log.warning("heartbeat_failed", error=type(error).__name__)
            return
        if self._over.is_set():
            return
        if status is None:
            self._fenced = True
            return
        self.status = status
        self._renewed = asked
        if self.on_beat is not None:
            self.on_beat()
