"""The queue: Celery as a doorbell. A message says that somebody waits; the database says who.

A message carries a job's id and nothing else, is acknowledged early, and may be lost, doubled or forged. Nothing is
kept in the broker that the sweep could not ring again.
"""

import threading
from contextlib import suppress
from typing import Literal

import structlog
from celery import Celery
from kombu import Connection, Queue

from models.settings import Settings

log = structlog.get_logger(__name__)

TASK = "limbeck.distil"
_WAITING_RINGS = 1000
_ASK_EVERY = 5.0
_RETRY_EVERY = 1.0
_PATIENCE = 2.0

State = Literal["ok", "unreachable", "none"]


def queue_name(device: str) -> str:
    return f"limbeck.{device}"


def celery_app(settings: Settings) -> Celery:
    """The Celery object; each setting is there for a failure that was measured."""
    app = Celery("limbeck", broker=settings.broker_url, backend=None)
    app.conf.update(
        broker_transport_options={
            "visibility_timeout": 3600,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": 2,
            "socket_timeout": 10,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": "limbeck:",
        },
        task_acks_late=False,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=False,
        task_queues=[Queue(queue_name(device), routing_key=queue_name(device)) for device in ("cpu", "gpu")],
        task_default_queue=queue_name("cpu"),
        task_publish_retry=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
    )
    return app


class Doorbell:
    """Rings for jobs from a thread of its own: `ring` neither blocks nor raises, whatever the broker does.

    While the broker cannot be reached, rings wait (a thousand of them, each job once) and it is asked again every
    second: a job that was submitted meanwhile starts as soon as the broker is back. What is lost with this process, the
    sweep rings again.
    """

    def __init__(self, settings: Settings) -> None:
        self._state: State = "none"
        self._rings: dict[str, str] = {}  # job to device, oldest first
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        if settings.broker_url:
            self._state = "ok"
            self._thread = threading.Thread(
                target=self._deliver, args=(celery_app(settings),), name="doorbell", daemon=True
            )
            self._thread.start()

    def ring(self, job_id: str, device: str) -> None:
        """Tell the workers of this kind of device that `job_id` waits."""
        if self._thread is None:
            return
        with self._changed:
            if len(self._rings) >= _WAITING_RINGS:
                log.warning("ring_dropped", job_id=job_id)
                return
            self._rings[job_id] = device
            self._changed.notify()

    def state(self) -> State:
        """Whether the broker answered when it was last asked, some seconds ago at most; `none` without a broker."""
        return self._state

    def close(self) -> None:
        """Stop after the rings that wait now, or after two seconds."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=2)

    def _deliver(self, app: Celery) -> None:
        connection: Connection | None = None
        while True:
            with self._changed:
                if not self._rings and not self._closing and self._state == "ok":
                    self._changed.wait(_ASK_EVERY)
                waiting = dict(self._rings)
                if self._closing and (not waiting or self._state == "unreachable"):
                    break
            try:
                connection = connection or _publisher(app)
                if not waiting:
                    connection.default_channel.client.ping()
                for job_id, device in waiting.items():
                    _publish(app, connection, job_id, device)
                    with self._changed:
                        self._rings.pop(job_id, None)
                self._is("ok")
            except Exception as error:  # noqa: BLE001 - kombu's transports raise what their clients raise
                self._is("unreachable", error=type(error).__name__)
                _let_go(connection)
                connection = None
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, _RETRY_EVERY)
        _let_go(connection)

    def _is(self, state: State, **details: str) -> None:
        if state != self._state:
            log.warning("broker_unreachable" if state == "unreachable" else "broker_is_back", **details)
        self._state = state


def _publisher(app: Celery) -> Connection:
    """A connection that gives up after two seconds; the worker's own waits for messages and must be more patient."""
    options = {
        **app.conf.broker_transport_options,
        "socket_timeout": _PATIENCE,
        "socket_connect_timeout": _PATIENCE,
        "max_retries": 0,
    }
    return app.connection_for_write(connect_timeout=_PATIENCE, transport_options=options)


def _publish(app: Celery, connection: Connection, job_id: str, device: str) -> None:
    app.send_task(TASK, args=[job_id], queue=queue_name(device), connection=connection, retry=False, ignore_result=True)


def _let_go(connection: Connection | None) -> None:
    if connection is not None:
        with suppress(Exception):
            connection.release()
