"""Fuzzes the HTTP server with raw bytes: ``python -m tests.fuzz_bytes [--minutes 60]``.

The front door and the whole API listen on a real port, over fake replicas. Valid requests are damaged as files are
(``tests/fuzz_files.py``). Each answer has to be in the format of the API, and no server error unless it has a type of
its own; the server must not hang, and has to serve the next request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import hypothesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings

from load_balancer.http.api import create_app
from load_balancer.http.api_settings import ApiSettings
from load_balancer.http.front_door import front_door
from load_balancer.http.openapi import EDITS, GENERATIONS
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from testing.pictures import gradient, png, transparent
from testing.raw_http import exchange, parsed
from testing.toy_family import FAMILY, PROFILE
from tests.fuzz_files import damaged
from tests.load_balancer.conftest import FakePool
from weir.config import FamilyConfig, LimitsConfig
from weir.core import ImageSize
from weir.plan import Plan
from weir.profiles import Profile

BODY = json.dumps({"prompt": "a red circle", "n": 1, "size": "64x64", "seed": 7, "stream": False}).encode()
_LENGTH = b"Content-Length: %d\r\n" % len(BODY)
_POST = b"POST " + GENERATIONS.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
_END = b"Connection: close\r\n\r\n"
_PART = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
_FILE = _PART.replace(b'name="%b"', b'name="%b"; filename="a.png"')
_FORM = b"".join(
    (
        _PART % (b"prompt", b"a red circle"),
        _PART % (b"strength", b"0.5"),
        _FILE % (b"image", png(gradient(ImageSize(8, 8)))),
        _FILE % (b"mask", png(transparent(ImageSize(8, 8)))),
        b"--x--\r\n",
    )
)
_EDIT = b"POST " + EDITS.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
REQUESTS = (
    b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n" + _END,
    b"GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\n" + _END,
    b"GET " + GENERATIONS.encode() + b"/an-id HTTP/1.1\r\nHost: a\r\n" + _END,
    _POST + _LENGTH + b"Idempotency-Key: k\r\nPrefer: respond-async, wait=1\r\n" + _END + BODY,
    _POST + b"Transfer-Encoding: chunked\r\n" + _END + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    _EDIT + b"Content-Length: %d\r\n" % len(_FORM) + _END + _FORM,
    b"PUT /v1/admin/pin HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n" + _END + b"{}",
)
GOOD = REQUESTS[0]


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """Serves the API behind the front door on a free port."""
    plan, family = Plan.split(1, 1, 1, light_batch=4, heavy_batch=4, threshold=0.5), FamilyConfig.model_validate(FAMILY)
    pool = FakePool(plan)
    balancer = Balancer(
        pool, plan, family, BalancerSettings(slo_s=5.0, queued=64), profile=Profile.model_validate(PROFILE)
    )
    balancer.dispatcher.sync(await pool.describe())
    app: Any = create_app(balancer, family, ApiSettings(limits=LimitsConfig(body_s=2.0)))
    for middleware in front_door():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical", access_log=False))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def check(port: int, sent: bytes, codes: Counter[int]) -> None:
    """Sends bytes, and a good request afterwards.

    Raises:
        AssertionError, TimeoutError, h11.RemoteProtocolError: an answer is wrong, or does not come.
    """
    received = await exchange(port, sent, then_close=True)
    if received.startswith(b"HTTP/1.1 ") and b" 200 OK" not in received[:20]:
        assert b"Traceback" not in received
    for answer in _read(received, sent):
        codes[answer.status] += 1
        assert answer.status not in (500, 502), answer
        if dict(answer.headers).get("content-type") == "application/json" and answer.body:
            assert answer.status < 400 or answer.json()["error"].keys() == {"message", "type", "param", "code"}, answer
        assert [name for name, _ in answer.headers].count("x-request-id") == 1, answer
    [good] = parsed(await exchange(port, GOOD), 1)
    assert good.status == 200


def _read(received: bytes, sent: bytes) -> Any:
    """The answers; those to HEAD have no body, and the last may be cut by the end of the connection."""
    try:
        return parsed(received, sent.count(b"HTTP/1.") + 1)
    except (h11.RemoteProtocolError, AssertionError):
        if b"HEAD" in sent:
            return []
        raise


def fuzz(examples: int, seed: int) -> Counter[int]:
    """Sends ``examples`` damaged requests of each kind; returns the number of answers by status.

    Raises:
        Exception: as :func:`check`; hypothesis has printed the smallest bytes.
    """
    codes: Counter[int] = Counter()
    with asyncio.Runner() as runner:
        server = serving()
        port = runner.run(server.__aenter__())
        for request in REQUESTS:

            @hypothesis.seed(seed)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )
            @given(damaged(request))
            def check_one(sent: bytes) -> None:
                runner.run(check(port, sent, codes))

            check_one()
        runner.run(server.__aexit__(None, None, None))
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the HTTP server with raw bytes.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable()
    until, seed, codes = time.monotonic() + 60 * given.minutes, given.seed, Counter[int]()
    while time.monotonic() < until:
        codes += fuzz(50, seed)
        seed += 1
    sys.stdout.write(f"{sum(codes.values())} answers: {dict(sorted(codes.items()))}; nothing was found\n")


if __name__ == "__main__":
    main()
