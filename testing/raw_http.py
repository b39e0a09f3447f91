"""Sends raw bytes to an HTTP server, and reads what it answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import h11

#: Time within which a server has answered and closed the connection, on a busy machine; seconds.
LONGEST_S = 60.0


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def exchange(port: int, sent: bytes, *, then_close: bool = False) -> bytes:
    """Sends bytes on a connection of its own; returns all that comes back until the server closes it.

    Args:
        then_close: ends the sending side, so that the server does not wait for more.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()
    try:
        async with asyncio.timeout(LONGEST_S):
            writer.write(sent)
            if then_close:
                writer.write_eof()
            while part := await reader.read(65536):
                received += part
    except ConnectionError:  # the server has closed it, with some of our bytes unread
        pass
    finally:
        writer.close()
    return bytes(received)


async def answers(port: int, sent: bytes, *, then_close: bool = False) -> list[Answer]:
    """The answers to the requests that the bytes contain, which were the last ones of their connection."""
    return parsed(await exchange(port, sent, then_close=then_close), sent.count(b"HTTP/1.") + 1)


def parsed(received: bytes, most: int) -> list[Answer]:
    """Reads at most ``most`` answers.

    Raises:
        h11.RemoteProtocolError: the bytes are no answers.
    """
    found: list[Answer] = []
    client = h11.Connection(h11.CLIENT)
    rest = received
    while rest and len(found) < most:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        client.receive_data(rest)
        head, body = None, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA, received
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
        assert head is not None
        headers = [(name.decode(), value.decode()) for name, value in head.headers]
        found.append(Answer(head.status_code, headers, body))
        rest = client.trailing_data[0]
    return found


def in_format(answer: Answer) -> bool:
    """Whether an answer is JSON with an id, and an error in the format of the API."""
    headers = dict(answer.headers)
    fields = answer.json()
    error = answer.status < 400 or fields["error"].keys() == {"message", "type", "param", "code"}
    return headers["content-type"] == "application/json" and bool(headers["x-request-id"]) and error
