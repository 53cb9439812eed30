"""The queue: Celery as a doorbell. A message says that somebody waits; the database says who.

A message carries a job's id and nothing else, is acknowledged early, and may be lost, doubled or forged. Nothing is
kept in the broker that the sweep could not ring again.
"""

import queue
import threading
from typing import Literal

import structlog
from celery import Celery
from kombu import Queue

from models.settings import Settings

log = structlog.get_logger(__name__)

TASK = "limbeck.distil"
_WAITING_RINGS = 1000
_PROBE_EVERY = 1.0


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

    A ring that cannot be delivered is kept and tried again each second; should this process end before, the sweep of
    another one rings.
    """

    def __init__(self, settings: Settings) -> None:
        self._state: Literal["ok", "unreachable", "none"] = "ok" if settings.broker_url else "none"
        self._rings: queue.Queue[tuple[str, str] | None] = queue.Queue(_WAITING_RINGS)
        self._missed: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        if settings.broker_url:
            celery = celery_app(settings)
            celery.conf.broker_transport_options = {
                **celery.conf.broker_transport_options,
                "socket_timeout": 2,
                "max_retries": 0,
            }
            self._thread = threading.Thread(target=self._deliver, args=(celery,), name="doorbell", daemon=True)
            self._thread.start()

    def ring(self, job_id: str, device: str) -> None:
        """Tell the workers of this kind of device that `job_id` waits."""
        if self._thread is None:
            return
        try:
            self._rings.put_nowait((job_id, device))
        except queue.Full:
            log.warning("ring_dropped", job_id=job_id)

    def state(self) -> Literal["ok", "unreachable", "none"]:
        """Whether the broker answered when it was last spoken to, a second ago at most; `none` without a broker."""
        return self._state

    def close(self) -> None:
        """Stop after the rings that wait now, or after two seconds."""
        if self._thread is None:
            return
        try:
            self._rings.put_nowait(None)
        except queue.Full:
            log.warning("rings_abandoned")
        self._thread.join(timeout=2)

    def _deliver(self, celery: Celery) -> None:
        while True:
            try:
                ring = self._rings.get(timeout=_PROBE_EVERY)
            except queue.Empty:
                pass
            else:
                if ring is None:
                    celery.close()
                    return
                if len(self._missed) < _WAITING_RINGS:
                    self._missed[ring[0]] = ring[1]
            self._speak(celery)

    def _speak(self, celery: Celery) -> None:
        """Deliver what waits, or see that the broker is there."""
        try:
            with celery.connection_for_write(connect_timeout=2) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=2)
                for job_id, device in list(self._missed.items()):
                    celery.send_task(
                        TASK,
                        args=[job_id],
                        queue=queue_name(device),
                        connection=connection,
                        retry=False,
                        ignore_result=True,
                    )
                    del self._missed[job_id]
            self._state = "ok"
        except Exception as error:  # noqa: BLE001 - kombu's transports raise what their clients raise
            if self._state != "unreachable":
                log.warning("broker_unreachable", error=type(error).__name__)
            self._state = "unreachable"
