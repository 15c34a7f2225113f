"""Servers on loopback that stand in for those of the network."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    """Says nothing, and answers HEAD as GET, without the content."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def send(self, status: int, content: bytes = b"", **headers: str) -> None:
        """Answer; in the headers' names underscores stand for hyphens."""
        self.server.asked.append((self.command, self.path))
        self.send_response(status)
        for name, value in {**headers, "Content_Length": str(len(content))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def log_message(self, *arguments: Any) -> None:
        """Keep the test's output quiet."""


class Server(http.server.ThreadingHTTPServer):
    """Serves until :meth:`close`.

    Attributes:
        endpoint: Its address.
        asked: Method and path of every request that :meth:`Handler.send` answered.
    """

    def __init__(self, handler: type[Handler], **attributes: Any) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[tuple[str, str]] = []
        for name, value in attributes.items():
            setattr(self, name, value)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
