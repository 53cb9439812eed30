"""The one way out: every call that this service makes because somebody asked it to goes through here.

A caller may name a host, and must not thereby reach what only this machine can reach. So a name is resolved here, each
of its addresses is judged, and the connection is made to an address that was judged, not to the name, which by then
may say something else (DNS rebinding). Redirects are not followed, no proxy of the environment is used, and an answer
is bounded in time and size. What the operator names in `LIMBECK_EGRESS_ALLOW` may be called nevertheless.

Knows nothing of who calls and why.
"""

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

import httpcore2
import httpx2

from models.errors import Denied, Unavailable
from models.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], list[str]]
"""The addresses of a host. Raises OSError."""

TOTAL_SECONDS = 15.0
CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024

_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PLATFORM = frozenset({ipaddress.IPv4Address("168.63.129.16")})
"""A public address behind which a cloud keeps what is its tenant's: Azure's host agent."""
_FAILURES = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)
    is_whole: bool
    """False: it was longer than asked for, and the rest was not read."""


def resolve(host: str, port: int) -> list[str]:
    """By the system. It also reads the spellings of an IPv4 address that browsers know: `2130706433`, `0x7f.1`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: Address) -> bool:
    """Whether everybody can reach it, so that to call it reveals nothing of this machine's neighbours."""
    if isinstance(address, ipaddress.IPv4Address):
        return (
            address.is_global
            and not (address.is_multicast or address.is_reserved or address.is_unspecified)
            and address not in _PLATFORM
        )
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        return is_public(address.sixtofour)
    return address in _UNICAST and address.is_global and address.teredo is None


class Allowed:
    """What the operator has named: networks, addresses, and hosts by their whole name. Raises ValueError."""

    def __init__(self, entries: str) -> None:
        self.hosts: set[str] = set()
        self.networks: list[Network] = []
        for entry in filter(None, (part.strip() for part in entries.split(","))):
            try:
                self.networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                if "/" in entry or ":" in entry:
                    raise ValueError(f"LIMBECK_EGRESS_ALLOW: {entry!r} is neither a network nor a host") from None
                self.hosts.add(_plain(entry))

    def host(self, host: str) -> bool:
        return _plain(host) in self.hosts

    def address(self, address: Address) -> bool:
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any(one in network for one in (address, mapped) if one is not None for network in self.networks)


class Egress:
    """The HTTP client. `resolve`: who is asked for addresses. One may be shared by threads; it holds no connection."""

    def __init__(self, allowed: Allowed, *, plain_http: bool = False, resolve: Resolve = resolve) -> None:
        self._allowed = allowed
        self._schemes = ("https", "http") if plain_http else ("https",)
        self._resolve = resolve
        self._tls = httpx2.create_ssl_context()

    @classmethod
    def of(cls, settings: Settings) -> "Egress":
        return cls(Allowed(settings.egress_allow), plain_http=settings.egress_http)

    def check(self, url: str) -> None:
        """Say now what `send` would refuse. A name that nobody knows just now passes. Raises `Denied`."""
        host, port = self._target(url)
        try:
            self._addresses(host, port)
        except OSError:
            return

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes = b"",
        seconds: float = TOTAL_SECONDS,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """One request and its answer, whatever its status, within `seconds`; at most `max_bytes` of its body are read.

        Raises `Denied`, and `Unavailable` (code `unreachable`) where no answer came.
        """
        self._target(url)
        backend = _Backend(self._judged, time.monotonic() + seconds)
        pool = httpcore2.ConnectionPool(ssl_context=self._tls, max_keepalive_connections=0, network_backend=backend)
        timeout = httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
        sent = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "Limbeck", **headers}
        try:
            with (
                httpx2.Client(transport=_Transport(pool), timeout=timeout, trust_env=False) as client,
                client.stream(method, url, headers=sent, content=content, follow_redirects=False) as response,
            ):
                body, is_whole = _first(response.iter_raw(), max_bytes)
        except _FAILURES as error:
            reason = _reason(error)
            raise Unavailable(f"no answer: {reason}", code="unreachable") from error
        received = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, received, body, is_whole)

    def _target(self, url: str) -> tuple[str, int]:
        """The host and port of a URL that may be called as far as its text says."""
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError):
            raise Denied("this is not a URL") from None
        if parsed.scheme not in self._schemes:
            raise Denied(
                f"only {' and '.join(self._schemes)} is called, not {parsed.scheme[:20]!r}",
                hint="the operator may allow plain http: LIMBECK_EGRESS_HTTP=true",
            )
        if parsed.userinfo:
            raise Denied("a URL with a user or password is not called", hint="give what is secret as a secret")
        host = parsed.raw_host.decode("ascii")
        if not host:
            raise Denied("this URL names no host")
        port = (443 if parsed.scheme == "https" else 80) if parsed.port is None else parsed.port
        if not 0 < port < 2**16:
            raise Denied("this URL's port is none")
        return host, port

    def _addresses(self, host: str, port: int) -> list[str]:
        """All of its addresses, if each of them may be called. Raises `Denied` and OSError."""
        try:
            found = self._resolve(host, port)
        except UnicodeError:  # a label that is empty or too long
            raise Denied("this URL's host is not a name") from None
        if self._allowed.host(host):
            return found
        for one in found:
            if not self._may_call(one):
                raise Denied(
                    "the host of this URL has an address that only this network can reach",
                    hint="the operator may allow it: LIMBECK_EGRESS_ALLOW=HOST,NETWORK",
                )
        return found

    def _judged(self, host: str, port: int) -> list[str]:
        try:
            return self._addresses(host, port)
        except OSError as error:
            raise _NoAddress from error

    def _may_call(self, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        return is_public(address) or self._allowed.address(address)


def _plain(host: str) -> str:
    return host.rstrip(".").lower()


def _first(chunks: Iterator[bytes], most: int) -> tuple[bytes, bool]:
    read = bytearray()
    for chunk in chunks:
        read += chunk
        if len(read) > most:
            return bytes(read[:most]), False
    return bytes(read), True


def _reason(error: Exception) -> str:
    """What happened in words of our own: a library's sentence may name addresses and files."""
    if isinstance(error, _NoAddress):
        return "the host has no address"
    if isinstance(error, httpcore2.ConnectTimeout | httpcore2.ConnectError):
        return "the connection was not taken"
    if isinstance(error, httpcore2.TimeoutException):
        return "it took too long"
    return "the connection broke off"


# --- below HTTP -------------------------------------------------------------------------------------------------------


class _NoAddress(httpcore2.ConnectError):
    """Nobody knows the name."""


class _Transport(httpx2.BaseTransport):
    """httpx2 over a pool whose connections are ours; its own transport takes no network backend."""

    def __init__(self, pool: httpcore2.ConnectionPool) -> None:
        self._pool = pool

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url = httpcore2.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        answer = self._pool.handle_request(
            httpcore2.Request(
                method=request.method,
                url=url,
                headers=request.headers.raw,
                content=request.read(),
                extensions=request.extensions,
            )
        )
        return httpx2.Response(answer.status, headers=answer.headers, stream=_Body(answer))

    def close(self) -> None:
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _Backend(httpcore2.NetworkBackend):
    """Connects to addresses that were judged, in their order, and lets nothing last beyond `until`."""

    def __init__(self, judged: Resolve, until: float) -> None:
        self._judged = judged
        self._until = until
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        last: Exception = _NoAddress()
        for address in self._judged(host, port):
            try:
                patience = _left(self._until, timeout)
                stream = self._plain.connect_tcp(address, port, patience, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
            else:
                return _Stream(stream, self._until)
        raise last


class _Stream(httpcore2.NetworkStream):
    """A connection on which everything together ends at `until`, however slowly the other side drips."""

    def __init__(self, stream: httpcore2.NetworkStream, until: float) -> None:
        self._stream = stream
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._until, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._until, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(self._until, timeout)), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(until: float, timeout: float | None) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("it took too long")
    return left if timeout is None else min(left, timeout)
