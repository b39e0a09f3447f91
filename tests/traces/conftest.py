"""A small HTTP server with the API of the endpoint, whose behaviour each test chooses."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

#: (number of the request, its body) → (seconds to take, status, answer)
Behaviour = Callable[[int, dict[str, Any]], tuple[float, int, Any]]


def _png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    return data.getvalue()


class Server:
    """Answers by calling ``behaviour``, and records the bodies of requests."""

    png = _png()

    @classmethod
    def image(cls, **about: Any) -> dict[str, Any]:
        """A complete response with one image."""
        fields = {
            "id": "r-1",
            "path": "light",
            "model": "tiny",
            "confidence": 0.75,
            "seed": 3,
            "steps": 2,
            "queue_s": 0.01,
            "compute_s": 0.02,
            "latency_s": 0.03,
            "plan_version": 4,
            "emulated": False,
        } | about
        return {"created": 1, "data": [{"b64_json": base64.b64encode(cls.png).decode(), "weir": fields}]}

    @staticmethod
    def error(code: str) -> dict[str, Any]:
        return {"error": {"message": "no", "type": "server_error", "param": None, "code": code}}

    def __init__(self) -> None:
        self.behaviour: Behaviour = lambda number, body: (0.0, 200, self.image())
        self.live: dict[str, Any] | None = None
        self.bodies: list[dict[str, Any]] = []
        self.arrived_at: list[float] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status = 200 if self.path == "/v1/live" and server.live is not None else 404
                data = json.dumps(server.live).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    number = len(server.bodies)
                    server.bodies.append({"url": self.path, **body})
                    server.arrived_at.append(time.monotonic())
                delay_s, status, answer = server.behaviour(number, body)
                time.sleep(delay_s)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    if status == 429:
                        self.send_header("Retry-After", "1")
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client closed the connection

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # some tests close the connection on purpose

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO())
