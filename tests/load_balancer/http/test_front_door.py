"""The front door: raw bytes of any kind are answered in the format of the API, within limits of size, number and time.

A real uvicorn serves an application that fails as Ray Serve's proxy does. ``tests/deploy/test_guarded_service.py`` has
the same behind Ray Serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from load_balancer.http import connection
from load_balancer.http.connection import MOST_HEAD_BYTES, MOST_HEADERS
from load_balancer.http.front_door import front_door
from testing.raw_http import answers, exchange, in_format

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
LAST = b"Connection: close\r\n\r\n"


class Proxy:
    """What Ray Serve's proxy does with headers; ``answer`` replaces its answer."""

    def __init__(self) -> None:
        self.seen: list[dict[bytes, bytes]] = []
        self.answer: Callable[[], Response] = lambda: Response(b"{}", media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self.seen.append(headers)
        for value in headers.values():
            value.decode()  # not UTF-8: Ray Serve fails
        while (await receive()).get("more_body"):
            pass
        response = self.answer()
        response.headers.append("x-request-id", headers[b"x-request-id"].decode())
        await response(scope, receive, send)


@asynccontextmanager
async def serving(proxy: Proxy) -> AsyncIterator[int]:
    """Serves as Ray Serve does, on a free port."""
    app: Any = proxy
    for middleware in front_door():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    config = uvicorn.Config(lambda: app, factory=True, port=0, lifespan="off", log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


CONTROL = (
    "x-request-timeout-seconds: 0.001",
    "X-Request-Timeout-Seconds: -1",
    "x-request-disconnect-disabled: ?1",
    "x-session-id: \xff",
    "X_Session_Id: a",
    "serve_multiplexed_model_id: \xff",
    "Serve-Multiplexed-Model-Id: a",
    "traceparent: \xff",
)


@pytest.mark.parametrize("header", CONTROL)
async def test_headers_that_control_ray_serve_do_not_reach_it(proxy, header):
    async with serving(proxy) as port:
        [answer] = await answers(port, GET + header.encode("latin-1") + b"\r\n" + LAST)
    assert answer.status == 200
    assert proxy.seen[0].keys() == {b"host", b"connection", b"x-request-id"}


@pytest.mark.parametrize("path", [b"/-/routes", b"/-/anything", b"/%2D/routes", b"*"])
async def test_ray_serves_own_paths_are_closed(proxy, path):
    async with serving(proxy) as port:
        [answer] = await answers(port, b"OPTIONS " + path + b" HTTP/1.1\r\nHost: a\r\n" + LAST)
        [health] = await answers(port, b"GET /-/healthz HTTP/1.1\r\nHost: a\r\n" + LAST)
    assert answer.status in (400, 404)
    assert in_format(answer)
    assert (health.status, len(proxy.seen)) == (200, 1)


@pytest.mark.parametrize("id", [b"\xff", b"a b", b"x" * 129, "é".encode(), b"../a"])
async def test_an_id_that_is_not_valid_is_refused_before_ray_serve(proxy, id):
    async with serving(proxy) as port:
        [answer] = await answers(port, GET + b"X-Request-Id: " + id + b"\r\n" + LAST)
    assert answer.status == 400
    assert answer.json()["error"]["param"] == "X-Request-Id"
    assert not proxy.seen


@pytest.mark.parametrize("ids", [[], [b"mine"], [b"mine", b"yours"], [b"mine", b"\xff"]])
async def test_every_answer_has_one_id_which_ray_serve_gets_too(proxy, ids):
    async with serving(proxy) as port:
        [answer] = await answers(port, GET + b"".join(b"X-Request-Id: %b\r\n" % id for id in ids) + LAST)
    [id] = [value for name, value in answer.headers if name == "x-request-id"]
    assert proxy.seen[0][b"x-request-id"].decode() == id
    assert not ids or id == "mine"


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [(404, 503, "not_ready"), (408, 504, "deadline_exceeded"), (500, 500, "internal_error"), (503, 503, "not_ready")],
)
async def test_ray_serves_own_words_become_errors_of_the_api(proxy, status, told, code):
    proxy.answer = lambda: PlainTextResponse("Traceback: secret", status)
    async with serving(proxy) as port:
        [answer] = await answers(port, GET + LAST)
    assert (answer.status, answer.json()["error"]["code"]) == (told, code)
    assert b"secret" not in answer.body
    assert ("retry-after" in dict(answer.headers)) == (told == 503)


async def test_a_request_at_which_ray_serve_fails_is_answered_in_the_format_of_the_api(proxy):
    async with serving(proxy) as port:
        [answer] = await answers(port, GET + b"X-Other: \xff\r\n" + LAST)
    assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")


TOO_LARGE = {
    "one long header": GET + b"X: " + b"a" * MOST_HEAD_BYTES + b"\r\n" + LAST,
    "a long name": GET + b"a" * MOST_HEAD_BYTES + b": a\r\n" + LAST,
    "many headers": GET + b"".join(b"X-%d: a\r\n" % number for number in range(MOST_HEADERS)) + LAST,
    "a long path": b"GET /" + b"a" * MOST_HEAD_BYTES + b" HTTP/1.1\r\nHost: a\r\n" + LAST,
    "a header without end": GET + b"X: " + b"a" * (4 * MOST_HEAD_BYTES),
    "a path without end": b"GET /" + b"a" * (4 * MOST_HEAD_BYTES),
}


@pytest.mark.parametrize("head", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_head_that_is_too_large_is_a_431(proxy, head):
    async with serving(proxy) as port:
        [answer] = await answers(port, head)
    assert answer.status == 431
    assert in_format(answer)
    assert f"at most {MOST_HEAD_BYTES} bytes and {MOST_HEADERS} headers" in answer.json()["error"]["message"]
    assert not proxy.seen


async def test_a_head_at_the_limits_is_taken(proxy):
    async with serving(proxy) as port:
        for head in (
            GET + b"X: " + b"a" * (MOST_HEAD_BYTES - 100) + b"\r\n" + LAST,
            GET + b"".join(b"X-%d: a\r\n" % number for number in range(MOST_HEADERS - 2)) + LAST,
        ):
            assert [answer.status for answer in await answers(port, head)] == [200]


async def test_trailers_without_end_end_the_connection(proxy):
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    async with serving(proxy) as port:
        assert await exchange(port, chunked + b"X: " + b"a" * (8 * MOST_HEAD_BYTES)) == b""


@pytest.mark.parametrize("unfinished", [b"", b"G", GET, GET + b"X: "], ids=["nothing", "a byte", "a line", "a header"])
async def test_a_connection_without_a_request_is_closed(proxy, unfinished, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.05)
    async with serving(proxy) as port:
        answer = await exchange(port, unfinished)
    assert answer == b"" if len(unfinished) < 1 else answer.startswith(b"HTTP/1.1 408 ")
    assert not proxy.seen


async def test_the_rest_of_a_body_that_was_answered_is_not_waited_for(proxy, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.05)
    async with serving(proxy) as port:
        sent = b"POST /-/routes HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc"
        assert (await exchange(port, sent)).startswith(b"HTTP/1.1 404 ")


async def test_of_too_many_quiet_connections_the_oldest_is_closed_and_requests_go_on(proxy, monkeypatch):
    monkeypatch.setattr(connection, "MOST_QUIET", 4)
    async with serving(proxy) as port:
        quiet = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        for reader, _ in quiet[:4]:
            assert await reader.read() == b""
        assert [answer.status for answer in await answers(port, GET + LAST)] == [200]
        for reader, writer in quiet[5:]:
            writer.write(GET + LAST)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        for _, writer in quiet:
            writer.close()


async def test_a_connection_serves_several_requests_one_after_the_other_and_at_once(proxy):
    async with serving(proxy) as port:
        found = await answers(port, (GET + b"\r\n") * 3 + GET + LAST)
    assert [answer.status for answer in found] == [200] * 4


async def test_a_request_for_a_web_socket_is_answered_as_any_other(proxy):
    upgrade = (
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n"
    )
    async with serving(proxy) as port:
        found = await exchange(port, GET + upgrade + b"\r\n")
    assert found.startswith(b"HTTP/1.1 200 ")


PARTS = st.sampled_from(
    [
        *(b"GET", b"POST", b" ", b"/", b"*", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r", b"\0", b"\xff", b":"),
        *(
            b"Host: a",
            b"Content-Length: 3",
            b"Content-Length: -1",
            b"Transfer-Encoding: chunked",
            b"0\r\n\r\n",
            b"3\r\n",
        ),
        *(
            b"X-Request-Id: \xff",
            b"Expect: 100-continue",
            b"Connection: close",
            b"0\r\n\r\n",
            b"\r\n\r\n",
            GET,
            GET + LAST,
        ),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS | st.binary(max_size=12), max_size=12).map(b"".join))
def test_whatever_bytes_arrive_every_answer_is_in_the_format_of_the_api(bytes_: bytes) -> None:
    async def check() -> None:
        async with serving(Proxy()) as port:
            for answer in await answers(port, bytes_, then_close=True):
                assert answer.status < 500 or b"\xff" in bytes_
                assert in_format(answer)
            [good] = await answers(port, GET + LAST)
            assert good.status == 200

    asyncio.run(check())
