"""Redis over TLS: a real Redis behind a TLS proxy on this machine, because the wheel's build has no TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cache.store.backend import StoreFailed
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.store import SealedStore
from tests.cache.conftest import PARTITION, SECRET, request, state
from weir.states import state_key


def certificate(folder: Path) -> tuple[Path, Path]:
    """Files of a self-signed certificate for 127.0.0.1 and of its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "redis.pem", folder / "redis.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))
    return paths


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def url(server: RedisServer, authority: tuple[Path, Path]) -> Iterator[str]:
    """The URL of a TLS proxy in front of the server."""
    plain, context = urlsplit(server.url), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority)
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), 0

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while part := await source.read(65536):
                sink.write(part)
                await sink.drain()
        sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_redis = await asyncio.open_connection(plain.hostname, plain.port)
        await asyncio.gather(copy(reader, to_redis), copy(behind, writer))

    async def serve() -> None:
        nonlocal port
        listening = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
        port = listening.sockets[0].getsockname()[1]
        ready.set()
        with suppress(asyncio.CancelledError):
            await listening.serve_forever()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(60)
    yield f"rediss://{plain.netloc.rpartition('@')[0]}@127.0.0.1:{port}/0"
    loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    thread.join(60)
    loop.close()


def test_states_are_stored_over_tls_with_a_trusted_certificate(url: str, authority: tuple[Path, Path]) -> None:
    backend = RedisBackend(url, read_s=2, write_s=2, tls_ca=str(authority[0]))
    store = SealedStore(backend, SECRET)
    store.put(request(), [state(10)])
    assert store.get(state_key(PARTITION, "a", 10)) is not None
    backend.close()


def test_a_server_with_an_unknown_certificate_is_a_failed_store(url: str, tmp_path: Path) -> None:
    stranger, _ = certificate(tmp_path)
    for ca in (None, str(stranger)):
        backend = RedisBackend(url, read_s=2, write_s=2, tls_ca=ca)
        with pytest.raises(StoreFailed, match="certificate verify failed"):
            backend.put({"key": b"value"})
        backend.close()
