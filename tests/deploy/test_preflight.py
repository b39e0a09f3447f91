"""What can be known is checked before anything starts, and each problem is one sentence with its remedy."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import preflight as module
from deploy.local import checked
from deploy.preflight import (
    LONGEST_SCRATCH,
    SCRATCH_BYTES,
    Machine,
    Place,
    _place,
    check_budget,
    check_ray,
    chosen,
    open_secrets,
    preflight,
    scratch_folder,
    shortage,
)
from tests.deploy.conftest import toy_service
from weir.assets import FAMILY
from weir.config import ServiceConfig, load_family, load_service
from weir.errors import ConfigError, ServiceError, WeirError

GIB = 2**30


def service(replicas: int = 2, gpus: float = 0) -> ServiceConfig:
    fields = {
        "family": "family.yaml",
        "slo_s": 10,
        "plan": {"light_replicas": replicas - 1, "heavy_replicas": 1},
        "pool": {"gpus_per_replica": gpus},
    }
    return ServiceConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("replicas", "gpus", "machine", "problem"),
    [
        (2, 1, Machine(64 * GIB), "torch finds 0 GPUs here, enough for 0"),
        (
            2,
            1,
            Machine(64 * GIB, (80 * GIB,)),
            "2 replicas with pool.gpus_per_replica 1, and torch finds 1 GPU here",
        ),
        (3, 0.5, Machine(64 * GIB, (80 * GIB,)), "enough for 2"),
        (2, 2, Machine(64 * GIB, (80 * GIB,) * 3), "enough for 1"),
        (3, 1 / 3, Machine(64 * GIB, (80 * GIB,)), None),
        (2, 1, Machine(64 * GIB, (80 * GIB,) * 2), None),
        (1, 2, Machine(64 * GIB, (80 * GIB,) * 2), None),
    ],
)
def test_a_plan_needs_its_gpus(replicas: int, gpus: float, machine: Machine, problem: str | None) -> None:
    found = shortage(service(replicas, gpus), 10 * GIB, machine)
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.parametrize(
    ("replicas", "gpus", "machine", "problem"),
    [
        (
            2,
            0,
            Machine(15 * GIB),
            "and judges need: 2 replicas of 10.00 GiB in 15.00 GiB of free memory of this machine",
        ),
        (2, 0.5, Machine(0, (16 * GIB,)), "2 replicas of 10.00 GiB in 16.00 GiB of free memory of its smallest GPU"),
        (2, 1, Machine(0, (16 * GIB, 8 * GIB)), "1 replica of 10.00 GiB in 8.00 GiB"),
        (2, 0, Machine(20 * GIB), None),
        (2, 0.5, Machine(0, (24 * GIB,)), None),
    ],
)
def test_the_weights_of_a_plan_need_their_memory(
    replicas: int, gpus: float, machine: Machine, problem: str | None
) -> None:
    found = shortage(service(replicas, gpus), 10 * GIB, machine)
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.parametrize(("budget_mib", "fits"), [(1024, True), (1025, False), (999_999_999_999, False)])
def test_the_budget_of_the_cache_needs_its_memory(budget_mib: int, fits: bool) -> None:
    fields = service().model_dump() | {"cache": {"mode": "read-write", "budget_mib": budget_mib}}
    given = ServiceConfig.model_validate(fields)
    if fits:
        check_budget(given, GIB)
        return
    with pytest.raises(ConfigError, match=f"cache.budget_mib is {budget_mib}, and this machine has 1024 MiB of free"):
        check_budget(given, GIB)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/no-such-device"])
def test_without_a_driver_or_without_gpus_a_plan_for_gpus_does_not_start(
    device: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(module, "_GPU_DEVICES", (device,))
    fields = service(2, 1)
    with pytest.raises(ConfigError, match="torch finds 0 GPUs"):
        preflight(fields, load_family(FAMILY), lambda what: None)


def test_a_collector_of_traces_that_is_no_url_is_refused_before_anything_starts(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "jaeger:4318")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_ENDPOINT is 'jaeger:4318'; accepted: the URL"):
        preflight(*load_service(config), lambda what: None)


def test_emulated_replicas_need_neither_gpus_nor_weights(config: Path) -> None:
    emulated, family = load_service(config)
    pool = emulated.pool.model_copy(update={"gpus_per_replica": 8})
    checked: list[str] = []
    assert preflight(emulated.model_copy(update={"pool": pool}), family, checked.append) == []
    assert checked == []


@pytest.fixture
def server() -> Iterator[Callable[[bytes], str]]:
    """Starts a server that answers every connection with these bytes; returns its address."""
    sockets: list[socket.socket] = []

    def start(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                sockets.append(connection)
                try:
                    connection.sendall(answer)
                except OSError:
                    continue

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for each in sockets:
        each.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "web server"])
def test_a_server_that_is_not_ray_is_not_waited_for(
    answer: bytes, server: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RAY_S", 0.5)
    address = server(answer)
    with pytest.raises(ServiceError, match=f"what listens at {address} is not Ray"):
        check_ray(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_nobody_answers_is_an_error_with_the_remedy(scheme: str) -> None:
    with pytest.raises(ServiceError, match=r"not answer at .*127\.0\.0\.1:9: Connection refused; correct RAY_ADDRESS"):
        check_ray(f"{scheme}127.0.0.1:9")


@pytest.mark.parametrize("address", ["head", "127.0.0.1", "127.0.0.1:gcs", ":6379"])
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ServiceError, match=r"not host:port; write for example 10\.0\.0\.5:6379"):
        check_ray(address)


def test_ray_looks_for_the_cluster_itself_if_asked_to() -> None:
    check_ray("auto")


def test_a_cluster_cannot_reach_a_redis_that_the_start_would_bring(
    config: Path, server: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.delenv("WEIR_CACHE_URL", raising=False)
    config.write_text(config.read_text() + "cache: {mode: read-write}\n")
    with pytest.raises(ConfigError, match=r"cache\.url no Redis; name a Redis that it can reach"):
        preflight(*load_service(config), lambda what: None)


def test_a_redis_of_ones_own_needs_a_secret_before_anything_starts(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("WEIR_CACHE_SECRET", raising=False)
    config.write_text(config.read_text() + 'cache: {mode: read-write, url: "redis://127.0.0.1:1"}\n')
    with pytest.raises(ConfigError, match=r"the cache has no secret for its tags; set one of at least 16 bytes"):
        preflight(*load_service(config), lambda what: None)


def test_a_selector_that_is_missing_is_named_by_its_own_key(config: Path) -> None:
    config.write_text(config.read_text() + "cache: {mode: read-write, selector: none.json}\n")
    with pytest.raises(ConfigError, match=r"^cache\.selector: .*none\.json: there is no such cache profile"):
        checked(config)


ROOM = SCRATCH_BYTES


@pytest.mark.parametrize(
    ("places", "path"),
    [
        ([Place("/tmp", ROOM)], "/tmp"),
        ([Place("/tmp", ROOM - 1), Place("/mnt/room", ROOM)], "/mnt/room"),
        ([Place("/tmp", problem="Read-only file system"), Place("/mnt/room", ROOM)], "/mnt/room"),
        ([Place("/tmp", ROOM), Place("/" + "a" * 60, 9 * ROOM)], "/tmp"),
    ],
)
def test_temporary_files_go_where_there_is_room_for_them_and_for_the_path_of_a_socket(
    places: list[Place], path: str
) -> None:
    assert chosen(places) == path


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (Place("/tmp", 3 * 2**20), "/tmp: 3 MiB are free, and 128 MiB are needed"),
        (Place("/tmp", problem="Read-only file system"), "/tmp: Read-only file system"),
        (Place("/" + "a" * LONGEST_SCRATCH, ROOM), f"has {LONGEST_SCRATCH + 1} characters, and Ray's sockets allow"),
    ],
)
def test_without_a_folder_for_temporary_files_nothing_starts(place: Place, problem: str) -> None:
    with pytest.raises(ServiceError, match="make room in /tmp, or set TMPDIR to a folder") as caught:
        chosen([place])
    assert problem in caught.value.message


def test_a_long_tmpdir_does_not_matter_while_tmp_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    folder = scratch_folder()
    assert folder.parent == Path("/tmp")
    folder.rmdir()


def test_a_secret_that_other_users_can_read_is_a_warning_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated, _ = load_service("deploy/configs/emulated-16.yaml")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        secret = Path(name) / "secret"
        secret.touch(mode=0o600)
        service = emulated.model_copy(update={"cache": emulated.cache.model_copy(update={"secret_file": str(secret)})})
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(secret))
        assert open_secrets(service) == []
        secret.chmod(0o644)
        warnings = open_secrets(service)
        assert [name for name in ("cache.secret_file", "RAY_AUTH_TOKEN_PATH") for it in warnings if name in it] == [
            "cache.secret_file",
            "RAY_AUTH_TOKEN_PATH",
        ]
        assert all("close it with `chmod 600`" in it for it in warnings)


def test_a_place_in_which_other_users_can_rename_files_is_not_used() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        assert "sticky bit" in _place(name).problem
        Path(name).chmod(0o1777)
        assert _place(name).problem == ""


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("redis://127.0.0.1:1/0", ServiceError, "does not answer, see state.url"),
        ("http://127.0.0.1:1", ConfigError, "state.url: not a URL of Redis"),
        ("redis://:se cret@127.0.0.1:1/0?retries=3", ConfigError, "state.url: accepted options after its"),
    ],
)
def test_the_redis_of_several_load_balancers_is_checked_before_anything_starts(
    url: str, kind: type[WeirError], words: str, tmp_path: Path
) -> None:
    config = toy_service(tmp_path, balancers=2, state={"url": url})
    with pytest.raises(kind, match=words) as refused:
        preflight(*load_service(config), lambda what: None)
    assert "cret" not in refused.value.message
