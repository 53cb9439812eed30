"""What this service will not call for anybody, and how a call ends that goes on for ever."""

import time

import pytest

from models.egress import Allowed, Egress
from models.errors import Denied, Unavailable
from models.settings import Settings
from tests.receiver import Receiver

PUBLIC = "93.184.215.14"


def guarded(allow: str = "", **names: list[str]) -> Egress:
    """An egress that knows only these names (`_` for a dot), by a resolver of its own, and literal addresses."""
    known = {name.replace("_", "."): addresses for name, addresses in names.items()}

    def resolve(host: str, port: int) -> list[str]:
        if host not in known:
            raise OSError("no such host")
        return known[host]

    return Egress(Allowed(allow), plain_http=True, resolve=resolve)


def here(allow: str = "127.0.0.0/8") -> Egress:
    return Egress(Allowed(allow), plain_http=True)


class TestAddresses:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0",
            "localhost",
            "LOCALHOST",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2001:0:1::1]",
            "[fe80::1]",
            "[fec0::1]",
            "[fd00:ec2::254]",
            "[ff02::1]",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "169.254.169.254",
            "168.63.129.16",
            "192.0.2.1",
            "224.0.0.1",
            "255.255.255.255",
        ],
    )
    def test_not_public(self, host: str) -> None:
        egress = Egress(Allowed(""))
        with pytest.raises(Denied) as caught:
            egress.check(f"https://{host}/x")
        assert caught.value.code == "egress_denied"
        with pytest.raises(Denied):
            egress.send("POST", f"https://{host}/x", headers={})

    @pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "[::ffff:8.8.8.8]", "[64:ff9b::808:808]"])
    def test_public(self, host: str) -> None:
        Egress(Allowed("")).check(f"https://{host}/x")

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.org/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "https://",
            "https://user:password@example.org/",
            "https://example.org:0/",
            "https://example.org:99999/",
            "https://0177.0.0.1/",
            "https://a..b/",
            "https://\x00/",
            "example.org",
            "",
        ],
    )
    def test_no_url_to_call(self, url: str) -> None:
        with pytest.raises(Denied):
            Egress(Allowed("")).check(url)


class TestNames:
    def test_one_private_address_among_several_is_enough(self) -> None:
        egress = guarded(evil_example=[PUBLIC, "10.0.0.7"], good_example=[PUBLIC])
        egress.check("https://good.example/")
        with pytest.raises(Denied):
            egress.check("https://evil.example/")

    def test_one_that_nobody_knows_may_be_known_later(self) -> None:
        guarded().check("https://nobody.example/")

    def test_a_name_that_changes_its_mind_reaches_nothing(self) -> None:
        """DNS rebinding: public when it is checked, this machine when it is called."""
        answers = [[PUBLIC], ["127.0.0.1"]]
        egress = Egress(Allowed(""), plain_http=True, resolve=lambda host, port: answers.pop(0))
        with Receiver() as receiver:
            url = f"http://rebinding.example:{receiver.port}/"
            egress.check(url)
            with pytest.raises(Denied):
                egress.send("POST", url, headers={})
            assert (receiver.received, answers) == ([], [])

    def test_is_called_at_the_address_that_was_judged(self) -> None:
        asked: list[str] = []

        def resolve(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"]

        egress = Egress(Allowed("hooks.example"), plain_http=True, resolve=resolve)
        with Receiver() as receiver:
            answer = egress.send("POST", f"http://hooks.example:{receiver.port}/a?b=c", headers={}, content=b"{}")
            assert answer.status == 204
            assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
            assert (receiver.received[0].path, receiver.received[0].body) == ("/a?b=c", b"{}")
        assert asked == ["hooks.example"]


class TestAllowed:
    def test_hosts_addresses_and_networks(self) -> None:
        egress = guarded("Hooks.Internal., 10.0.0.0/8, ::1", hooks_internal=["192.168.0.1"], other=["10.9.9.9"])
        egress.check("http://hooks.internal/")
        egress.check("http://other/")
        loopback = Egress(Allowed("127.0.0.1,::1"), plain_http=True)
        for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
            loopback.check(f"http://{host}/")
        for host in ("127.0.0.2", "[::2]"):
            with pytest.raises(Denied):
                loopback.check(f"http://{host}/")

    def test_a_host_is_its_whole_name(self) -> None:
        egress = guarded("internal", evil_internal=["10.0.0.1"])
        with pytest.raises(Denied):
            egress.check("http://evil.internal/")

    def test_a_mistyped_network_stops_the_process(self) -> None:
        with pytest.raises(ValueError, match="LIMBECK_EGRESS_ALLOW"):
            Allowed("10.0.0.0/33")

    def test_of_the_settings(self, settings: Settings) -> None:
        with pytest.raises(Denied, match="only https"):
            Egress.of(settings).check("http://8.8.8.8/")
        opened = Settings(data_dir=settings.data_dir, egress_allow="127.0.0.1", egress_http=True)
        Egress.of(opened).check("http://127.0.0.1/")


class TestAnswers:
    def test_no_redirect_is_followed(self) -> None:
        with Receiver() as inner, Receiver([302], {"Location": inner.url}) as outer:
            assert here().send("POST", outer.url, headers={}).status == 302
            assert inner.received == []

    def test_the_environment_has_no_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Receiver() as proxy, Receiver() as receiver:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("ALL_PROXY", proxy.url)
            here().send("POST", receiver.url, headers={})
            assert (len(proxy.received), len(receiver.received)) == (0, 1)

    def test_a_long_one_is_cut(self) -> None:
        with Receiver([200]) as receiver:
            whole = here().send("POST", receiver.url, headers={})
            cut = here().send("POST", receiver.url, headers={}, max_bytes=10)
        assert (whole.body, whole.is_whole) == (b"x" * 100, True)
        assert (cut.body, cut.is_whole) == (b"x" * 10, False)

    def test_one_that_drips_ends_in_time(self) -> None:
        with Receiver(["slow"]) as receiver:
            began = time.monotonic()
            with pytest.raises(Unavailable, match="too long"):
                here().send("POST", receiver.url, headers={}, seconds=0.4)
            assert time.monotonic() - began < 2

    def test_a_connection_that_breaks_off(self) -> None:
        with Receiver(["drop"]) as receiver, pytest.raises(Unavailable, match="broke off") as caught:
            here().send("POST", receiver.url, headers={})
        assert caught.value.code == "unreachable"

    def test_nobody_there(self) -> None:
        with Receiver() as receiver:
            url = receiver.url
        with pytest.raises(Unavailable, match="not taken"):
            here().send("POST", url, headers={})
        with pytest.raises(Unavailable, match="no address"):
            guarded().send("POST", "http://nobody.example/", headers={})

    def test_tls_is_verified_by_name(self) -> None:
        """A server that does not speak TLS is not spoken to without it."""
        with Receiver() as receiver:
            url = receiver.url.replace("http://", "https://")
            with pytest.raises(Unavailable):
                here().send("POST", url, headers={}, seconds=2)
            assert receiver.received == []
