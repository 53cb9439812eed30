"""A server that answers as it is told to, and writes down what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], Any]
"""Status, headers, body."""
HALF = "half"
"""Break the connection with most of the request unread."""


@dataclass
class Script:
    """The answers to come; None, or `HALF`, to break the connection. The last one stays."""

    answers: list[Answer | str | None]
    by: Callable[[str, bytes], Answer] | None = None
    """In place of `answers`: what is said to a path and body."""
    url: str = ""
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def next(self, path: str, body: bytes) -> Answer | str | None:
        if self.by is not None:
            return self.by(path, body)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def scripted() -> Iterator[Script]:
    found = Script([])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            half = found.answers[:1] == [HALF]
            body = self.rfile.read(min(length, 1000) if half else length)
            found.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            answer = found.next(self.path, body)
            if answer is None or isinstance(answer, str):
                self.close_connection = True
                return
            status, headers, document = answer
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the library's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
