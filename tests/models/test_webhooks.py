"""The outbox and its sending, on SQLite and on PostgreSQL, to a receiver that checks with the library it would have."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from standardwebhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from models import deliveries, deployments, lifecycle, secrets, webhooks
from models.database import Database, db_now
from models.deliveries import SCHEDULE, Postman
from models.egress import Allowed, Egress
from models.errors import Conflict, Invalid, Missing
from models.lifecycle import NewStudent
from models.secrets import Vault
from models.specs import DeploymentSpec
from models.tables import Delivery, Event, Job, Student, Webhook, new_id, utc_now
from models.webhooks import EVENTS, EventType
from tests.receiver import Receiver

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture
def vault() -> Vault:
    return Vault(["v" * 32])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


PostmanOf = Callable[..., Postman]


@pytest.fixture
def postman_of(vault: Vault) -> Iterator[PostmanOf]:
    """Makes senders: `postman_of(database, *pauses)`; they may call this machine, or what `allow` says."""
    made: list[Postman] = []

    def make(database: Database, *schedule: float, allow: str = "127.0.0.1") -> Postman:
        made.append(Postman(database, vault, Egress(Allowed(allow), plain_http=True), schedule))
        return made[-1]

    yield make
    for sender in made:
        sender.close()


def listen(
    database: Database, vault: Vault, url: str, *events: EventType, owner: str = "me", secret: str | None = None
) -> tuple[str, SecretStr | None]:
    with database.writing() as session:
        row, made = webhooks.create(session, vault, owner=owner, url=url, events=events or EVENTS, secret=secret)
        return row.id, made


def queued(database: Database, owner: str = "me", **spec: Any) -> str:
    job_id = new_id("job")
    with database.writing() as session:
        session.add(Job(id=job_id, owner=owner, name="tweets", spec={}, resolved_spec={"seed": 0, **spec}))
        session.flush()
        webhooks.tell_of_job(session, job_id, "queued")
    return job_id


def start(database: Database, job_id: str) -> int:
    with database.writing() as session:
        claimed = lifecycle.claim(session, job_id, "wk_1", 30.0)
    assert claimed is not None
    return claimed.attempt


def succeed(database: Database, job_id: str, attempt: int) -> str:
    id_ = new_id("st")
    with database.writing() as session:
        report = {"verdict": "It is small.", "gate": {"passed": True}}
        lifecycle.succeed(session, job_id, attempt, NewStudent(id_, "b" * 64, f"students/{id_}", {}, report))
    return id_


def waiting(database: Database, webhook_id: str) -> list[Delivery]:
    with database.reading() as session:
        return list(
            session.scalars(select(Delivery).where(Delivery.webhook_id == webhook_id).order_by(Delivery.id)).all()
        )


def types(database: Database, webhook_id: str) -> list[str]:
    return [row.type for row in waiting(database, webhook_id)]


def send_test(database: Database, webhook_id: str) -> str:
    with database.writing() as session:
        return webhooks.test(session, session.get_one(Webhook, webhook_id)).id


def deliver(postman: Postman) -> int:
    return postman.deliver(threading.Event())


def told(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(one.body) for one in receiver.received]


class TestOutbox:
    def test_what_becomes_of_a_job(self, database: Database, vault: Vault) -> None:
        webhook, _ = listen(database, vault, "https://x")
        job = queued(database)
        student = succeed(database, job, start(database, job))
        rows = waiting(database, webhook)
        assert [row.type for row in rows] == ["job.started", "job.succeeded", "student.published"]
        started, succeeded, published = (json.loads(row.body) for row in rows)
        assert started["data"] | {"version": 0} == {
            "id": job,
            "name": "tweets",
            "status": "running",
            "attempt": 1,
            "student_id": None,
            "error": None,
            "version": 0,
        }
        assert (succeeded["data"]["status"], succeeded["data"]["student_id"]) == ("succeeded", student)
        assert succeeded["data"]["version"] > started["data"]["version"]
        assert (published["data"]["id"], published["data"]["verdict"]) == (student, "It is small.")

    def test_one_that_fails(self, sqlite_database: Database, vault: Vault) -> None:
        webhook, _ = listen(sqlite_database, vault, "https://x", "job.failed")
        job = queued(sqlite_database)
        attempt = start(sqlite_database, job)
        with sqlite_database.writing() as session:
            lifecycle.fail(session, job, attempt, code="diverged", message="The loss is not a number.")
        (row,) = waiting(sqlite_database, webhook)
        assert json.loads(row.body)["data"]["error"]["code"] == "diverged"

    def test_one_that_is_cancelled_or_paused(self, sqlite_database: Database, vault: Vault) -> None:
        database = sqlite_database
        webhook, _ = listen(database, vault, "https://x", "job.cancelled", "job.paused")
        cancelled, paused = queued(database), queued(database)
        with database.writing() as session:
            lifecycle.request_cancel(session, session.get_one(Job, cancelled))
        attempt = start(database, paused)
        with database.writing() as session:
            session.execute(update(Job).where(Job.id == paused).values(status="pausing"))
        with database.writing() as session:
            lifecycle.release(session, paused, attempt)
        rows = [json.loads(row.body) for row in waiting(database, webhook)]
        assert [(row["type"], row["data"]["id"]) for row in rows] == [
            ("job.cancelled", cancelled),
            ("job.paused", paused),
        ]

    def test_a_trainers_own_words_are_no_status(self, sqlite_database: Database, vault: Vault) -> None:
        webhook, _ = listen(sqlite_database, vault, "https://x", "job.succeeded")
        job = queued(sqlite_database)
        attempt = start(sqlite_database, job)
        with sqlite_database.writing() as session:
            lifecycle.record(session, job, attempt, events=[lifecycle.Happening("succeeded", "I think", {})])
        assert types(sqlite_database, webhook) == []

    def test_nothing_is_told_of_what_did_not_happen(self, database: Database, vault: Vault) -> None:
        """The transaction that changes the status writes the delivery: it is rolled back with it."""
        webhook, _ = listen(database, vault, "https://x")
        job = queued(database)
        with pytest.raises(ZeroDivisionError), database.writing() as session:
            lifecycle.claim(session, job, "wk_1", 30.0)
            session.flush()
            assert session.scalar(select(Delivery.id)) is not None
            raise ZeroDivisionError
        assert types(database, webhook) == []
        with database.reading() as session:
            assert session.scalars(select(Event)).all() == []

    def test_only_the_owners_and_only_what_is_wanted(self, sqlite_database: Database, vault: Vault) -> None:
        mine, _ = listen(sqlite_database, vault, "https://x", "job.succeeded")
        theirs, _ = listen(sqlite_database, vault, "https://x", owner="stranger")
        job = queued(sqlite_database)
        succeed(sqlite_database, job, start(sqlite_database, job))
        assert (types(sqlite_database, mine), types(sqlite_database, theirs)) == (["job.succeeded"], [])

    def test_a_deployment_that_moves(self, sqlite_database: Database, vault: Vault) -> None:
        webhook, _ = listen(sqlite_database, vault, "https://x", "deployment.moved")
        jobs = [queued(sqlite_database) for _ in range(2)]
        first, second = (succeed(sqlite_database, job, start(sqlite_database, job)) for job in jobs)
        with sqlite_database.writing() as session:
            session.execute(update(Student).values(manifest={"task": "text-classification", "labels": ["a", "b"]}))

        def put(student: str) -> None:
            with sqlite_database.writing() as session:
                wanted = DeploymentSpec(student=student)
                deployments.put(session, owner="me", name="live", wanted=wanted, by="key_1")

        for student in (first, first, second):
            put(student)
        rows = [json.loads(row.body)["data"] for row in waiting(sqlite_database, webhook)]
        assert [(row["student_id"], row["previous_student_id"], row["version"]) for row in rows] == [
            (first, None, 1),
            (second, first, 2),
        ]

    def test_the_address_of_one_job(self, sqlite_database: Database, vault: Vault) -> None:
        wanted = {"url": "https://ci.example/x", "secret": "webhook-signing"}
        job, other = queued(sqlite_database, webhook=wanted), queued(sqlite_database)
        for one in (job, other):
            succeed(sqlite_database, one, start(sqlite_database, one))
        with sqlite_database.reading() as session:
            (row,) = session.scalars(select(Webhook)).all()
        assert (row.job_id, row.url, row.secret, row.owner) == (job, wanted["url"], wanted["secret"], "me")
        assert types(sqlite_database, row.id) == ["job.started", "job.succeeded", "student.published"]

    def test_not_without_end(self, sqlite_database: Database, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(webhooks, "MOST_WEBHOOKS", 1)
        listen(sqlite_database, vault, "https://x")
        with pytest.raises(Conflict):
            listen(sqlite_database, vault, "https://x")

    def test_a_deleted_one_leaves_nothing(self, sqlite_database: Database, vault: Vault) -> None:
        webhook, _ = listen(sqlite_database, vault, "https://x")
        send_test(sqlite_database, webhook)
        with sqlite_database.writing() as session:
            webhooks.delete(session, session.get_one(Webhook, webhook))
        with sqlite_database.reading() as session:
            for table in (Webhook, Delivery, secrets.Secret):
                assert session.scalars(select(table)).all() == []


class TestSigner:
    @pytest.mark.parametrize("size", [24, 64])
    def test_of_a_secret(self, size: int) -> None:
        webhooks.signer(SecretStr("whsec_" + base64.b64encode(b"x" * size).decode()))

    @pytest.mark.parametrize("value", ["", "whsec_", "hunter2", "whsec_hunter2", SECRET[6:], SECRET + "!", "whsec_é"])
    def test_what_cannot_sign(self, value: str) -> None:
        with pytest.raises(Invalid) as caught:
            webhooks.signer(SecretStr(value))
        assert caught.value.code == "bad_signing_secret"
        assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"


class TestDelivering:
    def test_a_receiver_can_verify_it(
        self, database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        webhook, made = listen(database, vault, receiver.url)
        assert made is not None
        id_ = send_test(database, webhook)
        assert deliver(postman_of(database, 0, 0)) == 1
        (one,) = receiver.received
        payload = Verifier(made.get_secret_value()).verify(one.body, one.headers)
        assert (payload["type"], payload["data"]) == ("webhook.test", {"id": webhook})
        assert (one.headers["webhook-id"], one.headers["content-type"]) == (id_, "application/json")
        with pytest.raises(WebhookVerificationError):
            Verifier(made.get_secret_value()).verify(one.body + b" ", one.headers)
        (row,) = waiting(database, webhook)
        assert (row.status, row.attempts, row.last_status_code, row.last_error) == ("delivered", 1, 204, None)
        assert (row.next_at, row.ended_at is None) == (None, False)
        assert deliver(postman_of(database, 0, 0)) == 0

    def test_signed_with_the_owners_own(
        self, sqlite_database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        with sqlite_database.writing() as session:
            secrets.put(session, vault, "me", "mine", SecretStr(SECRET))
        webhook, made = listen(sqlite_database, vault, receiver.url, secret="mine")
        assert made is None
        send_test(sqlite_database, webhook)
        deliver(postman_of(sqlite_database))
        Verifier(SECRET).verify(receiver.received[0].body, receiver.received[0].headers)

    def test_again_after_an_error_and_a_dropped_connection(
        self, database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        receiver.replies = [500, "drop", 200]
        webhook, made = listen(database, vault, receiver.url)
        id_ = send_test(database, webhook)
        assert deliver(postman_of(database, 0, 0)) == 3
        assert [one.headers["webhook-id"] for one in receiver.received] == [id_] * 3
        assert len({one.body for one in receiver.received}) == 1
        assert made is not None
        Verifier(made.get_secret_value()).verify(receiver.received[2].body, receiver.received[2].headers)
        (row,) = waiting(database, webhook)
        assert (row.status, row.attempts, row.last_error) == ("delivered", 3, None)

    def test_not_for_ever(
        self, sqlite_database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        receiver.replies = [500]
        webhook, _ = listen(sqlite_database, vault, receiver.url)
        send_test(sqlite_database, webhook)
        assert deliver(postman_of(sqlite_database, 0, 0)) == 3
        (row,) = waiting(sqlite_database, webhook)
        assert (row.status, row.last_status_code, row.last_error) == ("failed", 500, "answered 500")
        assert row.ended_at is not None

    @pytest.mark.parametrize(("retry_after", "at_least"), [("", SCHEDULE[0]), ("120", 120.0), ("soon", SCHEDULE[0])])
    def test_after_a_pause(
        self, sqlite_database: Database, vault: Vault, postman_of: PostmanOf, retry_after: str, at_least: float
    ) -> None:
        headers = {"Retry-After": retry_after} if retry_after else {}
        sender = postman_of(sqlite_database, *SCHEDULE)
        with Receiver([503], headers) as receiver:
            webhook, _ = listen(sqlite_database, vault, receiver.url)
            send_test(sqlite_database, webhook)
            began = time.time()
            assert deliver(sender) == 1
        (row,) = waiting(sqlite_database, webhook)
        assert row.next_at is not None
        assert at_least - 0.1 <= row.next_at - began <= at_least * 1.1 + 2
        assert row.status == "pending"

    def test_for_about_a_day(self) -> None:
        assert list(SCHEDULE) == sorted(SCHEDULE)
        assert 20 * 3600 < sum(SCHEDULE) < 28 * 3600

    def test_a_redirect_is_no_delivery(
        self, sqlite_database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        sender = postman_of(sqlite_database, *SCHEDULE)
        with Receiver([307], {"Location": receiver.url}) as outer:
            webhook, _ = listen(sqlite_database, vault, outer.url)
            send_test(sqlite_database, webhook)
            deliver(sender)
        assert receiver.received == []
        assert waiting(sqlite_database, webhook)[0].last_error == "answered 307; redirects are not followed"

    def test_gone_is_gone(self, database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver) -> None:
        receiver.replies = [410]
        webhook, _ = listen(database, vault, receiver.url)
        first, second = send_test(database, webhook), send_test(database, webhook)
        assert deliver(postman_of(database, 0, 0)) == 1
        rows = waiting(database, webhook)
        assert [(row.id, row.status, row.last_status_code) for row in rows] == [
            (first, "failed", 410),
            (second, "failed", None),
        ]
        queued_after = queued(database)
        start(database, queued_after)
        assert len(waiting(database, webhook)) == 2
        with database.writing() as session:
            row = session.get_one(Webhook, webhook)
            assert "410" in str(row.disabled_reason)
            for ask in (lambda: webhooks.test(session, row), lambda: webhooks.replay(session, row, first)):
                with pytest.raises(Conflict) as caught:
                    ask()
                assert caught.value.code == "webhook_disabled"

    def test_a_secret_that_is_gone_is_a_reason(
        self, sqlite_database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        webhook, _ = listen(sqlite_database, vault, receiver.url, secret="absent")
        send_test(sqlite_database, webhook)
        deliver(postman_of(sqlite_database))
        (row,) = waiting(sqlite_database, webhook)
        assert (row.status, row.last_error, receiver.received) == ("failed", "there is no secret 'absent'", [])

    def test_what_may_not_be_called_is_not(
        self, sqlite_database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        webhook, _ = listen(sqlite_database, vault, receiver.url)
        send_test(sqlite_database, webhook)
        deliver(postman_of(sqlite_database, allow=""))
        assert "only this network" in str(waiting(sqlite_database, webhook)[0].last_error)
        assert receiver.received == []


class TestMany:
    def test_two_senders_at_once_send_once(
        self, database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        webhook, _ = listen(database, vault, receiver.url)
        ids = [send_test(database, webhook) for _ in range(8)]
        senders = [postman_of(database) for _ in range(3)]
        together(*(lambda sender=sender: deliver(sender) for sender in senders))  # type: ignore[misc]
        assert sorted(one.headers["webhook-id"] for one in receiver.received) == ids
        assert {row.status for row in waiting(database, webhook)} == {"delivered"}

    def test_one_that_died_while_it_sent(
        self, database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        """Its lease runs out, and what it might still write down counts no more."""
        webhook, _ = listen(database, vault, receiver.url)
        id_ = send_test(database, webhook)
        with database.writing() as session:
            dead = deliveries._claim(session, id_)
        assert dead is not None
        assert deliver(postman_of(database, 0, 0)) == 0
        with database.writing() as session:
            session.execute(update(Delivery).values(next_at=db_now() - 1))
        assert deliver(postman_of(database, 0, 0)) == 1
        with database.writing() as session:
            postman_of(database)._settle(session, dead, deliveries._Outcome(500, "answered 500"))
        (row,) = waiting(database, webhook)
        assert (row.status, row.attempts) == ("delivered", 2)

    def test_a_slow_one_holds_up_nobody_else(
        self, sqlite_database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        with Receiver(["slow"]) as slow:
            one, _ = listen(sqlite_database, vault, slow.url)
            other, _ = listen(sqlite_database, vault, receiver.url)
            send_test(sqlite_database, one)
            send_test(sqlite_database, other)
            sender = postman_of(sqlite_database, *SCHEDULE)
            stopping = threading.Event()
            thread = threading.Thread(target=sender.deliver, args=(stopping,))
            thread.start()
            until = time.monotonic() + 5
            while not (receiver.received and slow.received) and time.monotonic() < until:
                time.sleep(0.01)
            assert len(receiver.received) == len(slow.received) == 1
            assert waiting(sqlite_database, one)[0].status == "pending"
            stopping.set()
        thread.join(10)


class TestReplay:
    @pytest.mark.parametrize("before", [204, 500])
    def test_the_same_again(
        self, sqlite_database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver, before: int
    ) -> None:
        receiver.replies = [before]
        webhook, _ = listen(sqlite_database, vault, receiver.url)
        id_ = send_test(sqlite_database, webhook)
        sent = deliver(postman_of(sqlite_database, 0, 0))
        receiver.replies = [500, 200]
        with sqlite_database.writing() as session:
            row = webhooks.replay(session, session.get_one(Webhook, webhook), id_)
            assert row.status == "pending"
        assert deliver(postman_of(sqlite_database, 0, 0)) == 2
        assert {one.headers["webhook-id"] for one in receiver.received} == {id_}
        (row,) = waiting(sqlite_database, webhook)
        assert (row.status, row.attempts) == ("delivered", sent + 2)

    def test_anothers_is_absent(self, sqlite_database: Database, vault: Vault) -> None:
        mine, _ = listen(sqlite_database, vault, "https://x")
        other, _ = listen(sqlite_database, vault, "https://x")
        id_ = send_test(sqlite_database, other)
        with sqlite_database.writing() as session, pytest.raises(Missing):
            webhooks.replay(session, session.get_one(Webhook, mine), id_)


class TestSweep:
    def test_what_is_old_goes(
        self, database: Database, vault: Vault, postman_of: PostmanOf, receiver: Receiver
    ) -> None:
        with database.writing() as session:
            secrets.put(session, vault, "me", "webhook-signing", SecretStr(SECRET))
        standing, _ = listen(database, vault, receiver.url)
        job = queued(database, webhook={"url": receiver.url, "secret": "webhook-signing"})
        start(database, job)
        deliver(postman_of(database, 0, 0))
        deliveries.sweep(database)
        assert len(waiting(database, standing)) == 1
        with database.writing() as session:
            session.execute(update(Job).values(status="cancelled"))
            lifecycle.delete(session, session.get_one(Job, job))
            session.execute(update(Delivery).values(ended_at=utc_now() - timedelta(days=31)))
        deliveries.sweep(database)
        with database.reading() as session:
            assert list(session.scalars(select(Webhook.id))) == [standing]
            assert session.scalars(select(Delivery)).all() == []


def together(*calls: Callable[[], object]) -> None:
    barrier = threading.Barrier(len(calls))

    def go(call: Callable[[], object]) -> None:
        barrier.wait()
        call()

    threads = [threading.Thread(target=go, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
