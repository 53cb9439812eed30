"""The queue: Celery as a doorbell. A message says that somebody waits; the database says who.

A message carries a job's id and nothing else, is acknowledged early, and may be lost, doubled or forged. Nothing is kept
in the broker that the sweep could not ring again.
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


def queue_name(device: str) -> str:
    return f"limbeck.{device}"


def celery_app(settings: Settings) -> Celery:
    """The Celery object of a worker, with the settings that docs/decisions/0005 explains."""
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

    A ring that cannot be delivered is dropped, and the sweep rings again.
    """

    def __init__(self, settings: Settings) -> None:
        self._state: Literal["ok", "unreachable", "none"] = "none"
        self._rings: queue.Queue[tuple[str, str] | None] = queue.Queue(_WAITING_RINGS)
        self._celery: Celery | None = None
        self._thread: threading.Thread | None = None
        if settings.broker_url:
            self._state = "ok"
            self._celery = celery_app(settings)
            self._celery.conf.broker_transport_options = {
                **self._celery.conf.broker_transport_options,
                "socket_timeout": 2,
                "max_retries": 0,
            }
            self._thread = threading.Thread(target=self._deliver, name="doorbell", daemon=True)
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
        """Whether the last ring was delivered; `none` without a broker."""
        return self._state

    def close(self) -> None:
        """Stop after the rings that wait now, or after two seconds."""
        if self._thread is None or self._celery is None:
            return
        try:
            self._rings.put_nowait(None)
        except queue.Full:
            log.warning("rings_abandoned")
        self._thread.join(timeout=2)
        self._celery.close()

    def _deliver(self) -> None:
        celery = self._celery
        while celery is not None and (ring := self._rings.get()) is not None:
            job_id, device = ring
            try:
                with celery.connection_for_write(connect_timeout=2) as connection:
                    celery.send_task(
                        TASK,
                        args=[job_id],
                        queue=queue_name(device),
                        connection=connection,
                        retry=False,
                        ignore_result=True,
                    )
                self._state = "ok"
            except Exception as error:  # noqa: BLE001 - kombu's transports raise what their clients raise
                self._state = "unreachable"
                log.warning("broker_unreachable", job_id=job_id, error=type(error).__name__)
