"""The doorbell against a real Valkey: a ring arrives, and whatever the broker does, nobody waits for it."""

import base64
import json
import threading
import time
from collections.abc import Iterator

import pytest

from models.queue import TASK, Doorbell, celery_app, queue_name
from models.settings import Settings
from tests.servers import Valkey, wait_until


@pytest.fixture
def doorbell(settings: Settings, valkey: Valkey) -> Iterator[Doorbell]:
    bell = Doorbell(settings.model_copy(update={"broker_url": valkey.url}))
    yield bell
    bell.close()


def waiting(valkey: Valkey, device: str = "cpu") -> list[str]:
    """The job ids of the messages in a queue, oldest first."""
    with valkey.client as client:
        messages = client.lrange(f"limbeck:{queue_name(device)}", 0, -1)
    return [json.loads(base64.b64decode(json.loads(message)["body"]))[0][0] for message in reversed(messages)]


@pytest.mark.valkey
class TestDoorbell:
    def test_a_ring_is_a_message_with_an_id(self, doorbell: Doorbell, valkey: Valkey) -> None:
        doorbell.ring("job_1", "cpu")
        doorbell.ring("job_2", "gpu")
        doorbell.ring("job_3", "cpu")
        wait_until(lambda: waiting(valkey) == ["job_1", "job_3"], 5)
        wait_until(lambda: waiting(valkey, "gpu") == ["job_2"], 5)
        assert doorbell.state() == "ok"
        with valkey.client as client:
            message = json.loads(client.lindex(f"limbeck:{queue_name('cpu')}", 0))
        assert message["headers"]["task"] == TASK
        assert message["content-type"] == "application/json"

    def test_to_close_delivers_what_waits(self, doorbell: Doorbell, valkey: Valkey) -> None:
        for number in range(50):
            doorbell.ring(f"job_{number}", "cpu")
        doorbell.close()
        assert len(waiting(valkey)) == 50

    def test_nobody_waits_for_a_broker_that_is_gone(self, doorbell: Doorbell, valkey: Valkey) -> None:
        valkey.stop()
        began = time.monotonic()
        for number in range(2000):
            doorbell.ring(f"job_{number}", "cpu")
        assert time.monotonic() - began < 1
        wait_until(lambda: doorbell.state() == "unreachable", 5)
        began = time.monotonic()
        doorbell.close()
        assert time.monotonic() - began < 3

    def test_what_was_rung_meanwhile_arrives_when_it_is_back(self, doorbell: Doorbell, valkey: Valkey) -> None:
        valkey.stop()
        doorbell.ring("job_1", "cpu")
        doorbell.ring("job_1", "cpu")
        wait_until(lambda: doorbell.state() == "unreachable", 5)
        doorbell.ring("job_2", "cpu")
        valkey.start()
        wait_until(lambda: doorbell.state() == "ok", 5)
        assert waiting(valkey) == ["job_1", "job_2"]

    def test_a_broker_that_takes_and_never_answers(self, doorbell: Doorbell, valkey: Valkey) -> None:
        """To one such a publish that may retry was still blocked after half a minute."""
        valkey.suspend()
        try:
            began = time.monotonic()
            doorbell.ring("job_1", "cpu")
            assert time.monotonic() - began < 0.1
            wait_until(lambda: doorbell.state() == "unreachable", 8)
        finally:
            valkey.resume()
        wait_until(lambda: doorbell.state() == "ok", 8)
        wait_until(lambda: "job_1" in waiting(valkey), 3)

    def test_it_notices_by_itself(self, doorbell: Doorbell, valkey: Valkey) -> None:
        doorbell.ring("job_1", "cpu")
        wait_until(lambda: waiting(valkey) == ["job_1"], 5)
        valkey.stop()
        wait_until(lambda: doorbell.state() == "unreachable", 10)
        valkey.start()
        wait_until(lambda: doorbell.state() == "ok", 5)


def test_without_a_broker_there_is_no_thread_and_no_error(settings: Settings) -> None:
    before = threading.active_count()
    doorbell = Doorbell(settings)
    doorbell.ring("job_1", "cpu")
    assert doorbell.state() == "none"
    assert threading.active_count() == before
    doorbell.close()


def test_the_settings_that_were_measured(settings: Settings) -> None:
    conf = celery_app(settings.model_copy(update={"broker_url": "redis://localhost"})).conf
    assert conf.broker_transport_options["global_keyprefix"] == "limbeck:"
    assert (conf.task_acks_late, conf.worker_prefetch_multiplier, conf.worker_disable_prefetch) == (False, 1, True)
    assert (conf.task_serializer, conf.accept_content, conf.result_backend) == ("json", ["json"], None)
    assert (conf.task_publish_retry, conf.worker_enable_remote_control) == (False, False)
    assert {queue.name for queue in conf.task_queues} == {"limbeck.cpu", "limbeck.gpu"}
