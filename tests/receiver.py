"""A receiver of webhooks on this machine: keeps what it was sent, and answers as it is told."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Reply = int | Literal["drop", "slow"]
"""A status; or the connection is closed without a word; or the answer begins and drips for ever."""


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


class Receiver:
    """`with Receiver([500, 200]) as receiver`: the last reply is repeated. `headers` are sent with each."""

    def __init__(self, replies: Sequence[Reply] = (204,), headers: Mapping[str, str] | None = None) -> None:
        self.replies = list(replies)
        self.received: list[Received] = []
        self._headers = dict(headers or {})
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next(self, received: Received) -> Reply:
        with self._lock:
            self.received.append(received)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def _handler(receiver) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = receiver._next(Received(self.path, headers, body))
                if reply == "drop":
                    self.close_connection = True
                elif reply == "slow":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                    while not receiver._stopping.wait(0.05):
                        self.wfile.write(b"x-drip: 1\r\n")
                else:
                    self.send_response(reply)
                    for name, value in receiver._headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(b"x" * 100)

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Nothing on standard error."""

        return Handler
