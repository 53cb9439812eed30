"""Commands about the service itself: secrets, webhooks, status, open, completion."""

import json
import time
from typing import Any

import pytest

from limbeck import Client
from limbeck.cli import completion
from tests.client.conftest import Cli
from tests.client.stand_ins import Service


class TestSecrets:
    def test_set_list_show_delete(self, cli: Cli) -> None:
        done = cli("secrets", "set", "hub-token", stdin="hf_value\n")
        assert (done.code, done.err) == (0, "")
        assert "hub-token" in cli("secrets", "list").out
        assert "hub-token" in cli("secrets", "show", "hub-token").out
        for words in (
            done.out,
            cli("secrets", "list", "--json").out,
            cli("secrets", "show", "hub-token", "--json").out,
        ):
            assert "hf_value" not in words
        assert "deleted" in cli("secrets", "delete", "hub-token").out
        gone = cli("secrets", "show", "hub-token")
        assert gone.code == 1
        assert "limbeck secrets list" in gone.err

    def test_the_line_end_is_not_of_the_value(self, service: Service, cli: Cli) -> None:
        """What `echo` puts at the end of what it prints."""
        cli("secrets", "set", "webhook-key", stdin="first\r\n")
        assert cli("secrets", "set", "webhook-key", stdin="").code == 1
        assert "empty" in cli("secrets", "set", "webhook-key", stdin="\n").err

    def test_a_command_line_never_has_the_value(self, cli: Cli) -> None:
        assert cli("secrets", "set", "hub-token", "hf_value").code == 2


class TestWebhooks:
    def test_add_list_test_deliveries_replay_delete(self, cli: Cli) -> None:
        made = cli("webhooks", "add", "https://example.com/hook", "--event", "job.succeeded")
        assert made.code == 0, made.err
        assert made.out.startswith("whsec_")
        assert made.out.strip() not in made.err
        id_ = made.err.split()[0]
        listed = cli("webhooks", "list").out
        assert id_ in listed
        assert "job.succeeded" in listed
        assert made.out.strip() not in listed
        sent = cli("webhooks", "test", id_, "--json").json
        assert sent["id"] in cli("webhooks", "deliveries", id_).out
        assert cli("webhooks", "replay", id_, sent["id"], "--json").json["webhook_id"] == id_
        assert "deleted" in cli("webhooks", "delete", id_).out
        assert "limbeck webhooks list" in cli("webhooks", "deliveries", id_).err

    def test_an_event_that_is_none(self, cli: Cli) -> None:
        refused = cli("webhooks", "add", "https://example.com/hook", "--event", "job.suceeded")
        assert refused.code == 1
        assert "/events" in refused.err


class TestStatus:
    def test_of_a_service_that_is_ready(self, cli: Cli, service: Service, client: Client, spec: dict[str, Any]) -> None:
        job = client.jobs.submit(spec)
        done = cli("status")
        assert done.code == 0
        assert "ready" in done.out
        assert service.url in done.out
        assert job.id in cli("status", "--json").json["queued"]

    def test_of_none(self, cli: Cli) -> None:
        done = cli("status", LIMBECK_URL="http://127.0.0.1:9")
        assert done.code == 1
        assert "limbeck up" in done.err


class TestOpen:
    def test_a_link_that_signs_in(self, cli: Cli, service: Service) -> None:
        link = cli("open", "--no-browser")
        assert link.code == 0, link.err
        assert link.out.startswith(f"{service.url}/ui/sign-in?token=")
        assert cli("open", "--json").json["url"] != link.out.strip()

    def test_a_browser_opens_it(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        """The browser is one that only notes what it is told to open."""
        opened: list[str] = []
        monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
        assert cli("open").out.split() == opened


class TestCompletion:
    def test_ids_of_the_service(
        self, client: Client, key: str, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = client.jobs.submit({**spec, "name": "for completion"})
        monkeypatch.setenv("LIMBECK_URL", client.url)
        monkeypatch.setenv("LIMBECK_API_KEY", key)
        offered = completion.ids("jobs", "datasets")
        assert (job.id, "for completion queued") in offered("job_")
        assert offered("nothing") == []
        assert {id_[:3] for id_, _ in offered("ds_")} == {"ds_"}
        monkeypatch.setenv("LIMBECK_API_KEY", "lk_wrong")
        assert offered("job_") == []

    def test_nobody_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LIMBECK_URL", "http://127.0.0.1:9")
        began = time.monotonic()
        assert completion.ids("jobs")("job_") == []
        assert time.monotonic() - began < 5

    def test_through_the_shell(self, cli: Cli) -> None:
        """As bash asks."""
        asked = cli(
            "jobs", _LIMBECK_COMPLETE="complete_bash", COMP_WORDS="limbeck jobs list --status ca", COMP_CWORD="4"
        )
        assert asked.out.split() == ["cancelling", "cancelled"]


def test_json_is_one_document_whatever_the_noun(cli: Cli) -> None:
    for noun in ("datasets", "teachers", "jobs", "students", "deployments", "keys", "secrets", "webhooks"):
        done = cli(noun, "list", "--json")
        assert json.loads(done.out)["object"] == "list", noun
