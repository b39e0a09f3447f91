"""What can be known before a service starts: room for files, Ray's address, GPUs, memory, weights and Redis."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from cache.factory import CHECK_S, URL, check_redis, secrets
from cache.store.backend import StoreFailed
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import server_binary
from deploy.cluster import existing
from load_balancer.shared.store import state_url
from weir.config import FamilyConfig, ServiceConfig
from weir.errors import ConfigError, ServiceError
from weir.files import is_private
from weir.logs import log_format
from weir.tracing import endpoint
from workers.models import stored_weights

#: Timeouts of the answers of Ray and of the process that looks at the GPUs, seconds.
RAY_S, GPUS_S = 5.0, 60.0
#: Room that the files of Redis and of Ray's first minutes need.
SCRATCH_BYTES = 128 * 2**20
#: Characters of a folder's path to which Ray appends up to 79 for its Unix sockets, which may have 107.
LONGEST_SCRATCH = 28
#: Devices of which one is there on every machine with GPUs that torch supports: NVIDIA's, AMD's, and WSL's.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_FREE_ON_GPUS = (
    "import json, torch; gpus = range(torch.cuda.device_count()); "
    "print(json.dumps([torch.cuda.mem_get_info(gpu)[0] for gpu in gpus]))"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has free.

    Attributes:
        gpu_bytes: free memory of each visible GPU.
    """

    memory_bytes: int
    gpu_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A folder for temporary files; ``problem`` says why no file can be written in it, or is empty."""

    path: str
    free_bytes: int = 0
    problem: str = ""


def preflight(service: ServiceConfig, family: FamilyConfig, report: Callable[[str], None]) -> list[str]:
    """Checks everything that a start needs, and starts nothing.

    Args:
        report: called with what is checked next.

    Returns:
        Warnings: sentences on what is missing and not needed, and on secrets that other users can read.

    Raises:
        ConfigError: the service does not fit this machine, its Redis is unsuitable or has no secret, or the environment
            names an unknown format of logs, or an endpoint of traces that cannot be one.
        ServiceError: Ray or the hub does not answer, or there is no redis-server.
    """
    log_format()  # the environment's
    endpoint()
    emulated = service.pool.emulate is not None
    if address := existing():
        report(f"an answer of Ray at {address}")
        check_ray(address)
    elif not emulated:
        report("the weights and the memory of this machine")
        stored_weights.check_available(family)
        check_machine(service, family)
    warnings = open_secrets(service)
    if service.cache.mode == "off" and not service.shared:
        return warnings
    report("an answer of Redis")
    if starts_redis(service):
        if existing():
            raise ConfigError(
                f"RAY_ADDRESS names a cluster, and cache.url no Redis; name a Redis that it can reach, or set {URL}"
            )
        server_binary()
        if service.cache.mode != "off":
            check_budget(service, free_memory())
    elif service.cache.mode != "off" and not existing():  # on a cluster, its own environment may have the secret
        secrets(service.cache)
    if warning := check_redis(service.cache):
        warnings.append(warning)
    check_state(service)
    return warnings


def check_state(service: ServiceConfig) -> None:
    """Checks the Redis in which several load balancers share their state, if one is named.

    Raises:
        ConfigError: it is unsuitable, or its URL is invalid.
        ServiceError: it does not answer.
    """
    url, tls_ca = state_url(service)
    if not service.shared or url is None:
        return
    backend = RedisBackend(url, read_s=CHECK_S, write_s=CHECK_S, tls_ca=tls_ca, key="state")
    try:
        backend.check()
    except StoreFailed as error:
        raise ServiceError(f"the Redis of the load balancers does not answer, see state.url: {error.message}") from None
    finally:
        backend.close()


def open_secrets(service: ServiceConfig) -> list[str]:
    """A warning for each file with a secret that other users of this machine can read."""
    files = {"cache.secret_file": service.cache.secret_file, "keys_file": service.keys_file}
    files["RAY_AUTH_TOKEN_PATH"] = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return [
        f"other users of this machine can read the file that {name} names; close it with `chmod 600`"
        for name, path in files.items()
        if path is not None and Path(path).is_file() and not is_private(Path(path))
    ]


def starts_redis(service: ServiceConfig) -> bool:
    """Whether a start brings its own Redis, because the cache is on or load balancers share state, and nothing names
    one."""
    cached = service.cache.mode != "off" and not service.cache.url and URL not in os.environ
    return cached or (service.shared and state_url(service)[0] is None)


def check_budget(service: ServiceConfig, free_bytes: int) -> None:
    """Checks that the states of the cache fit the memory of the machine on which its Redis starts.

    Raises:
        ConfigError: they do not.
    """
    if service.cache.budget_mib * 2**20 > free_bytes:
        raise ConfigError(
            f"cache.budget_mib is {service.cache.budget_mib}, and this machine has {free_bytes // 2**20} MiB of free "
            "memory; lower it, or name a Redis on another machine in cache.url"
        )


def check_ray(address: str) -> None:
    """Checks that Ray answers at an address of ``RAY_ADDRESS``. ``auto`` names none, and Ray looks for it itself.

    Raises:
        ServiceError: the address is invalid, or no process answers there; the message has the remedy.
    """
    if address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is not a number
        host, port = None, None
    if not host or not port:
        raise ServiceError(f"RAY_ADDRESS is {address!r}, and not host:port; write for example 10.0.0.5:6379")
    remedy = (
        "correct RAY_ADDRESS, start Ray there (`ray start --head`), or unset RAY_ADDRESS to run Ray on this machine"
    )
    try:
        socket.create_connection((host, port), RAY_S).close()
    except OSError as error:
        raise ServiceError(f"Ray does not answer at {address}: {error.strerror or error}; {remedy}") from None
    if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_grpc(host, port):
        raise ServiceError(f"what listens at {address} is not Ray; {remedy}")


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether a server answers as gRPC's do. With another server ``ray.init`` would wait for minutes."""
    import grpc  # one of Ray's own dependencies

    with grpc.insecure_channel(f"{f'[{host}]' if ':' in host else host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=RAY_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def check_machine(service: ServiceConfig, family: FamilyConfig) -> None:
    """Checks that the replicas fit this machine.

    Raises:
        ConfigError: there are too few GPUs, or too little memory for the weights; the message has the remedy.
    """
    on_gpus = service.pool.gpus_per_replica > 0
    machine = Machine(free_memory(), free_gpu_memory() if on_gpus else ())
    element_bytes = 2 if family.dtype in ("float16", "bfloat16") or (family.dtype == "auto" and on_gpus) else 4
    if problem := shortage(service, stored_weights.size_bytes(family, element_bytes), machine):
        raise ConfigError(problem)


def shortage(service: ServiceConfig, weights_bytes: int, machine: Machine) -> str | None:
    """The sentence that says why the replicas of a plan do not fit a machine; None if they may fit.

    Args:
        weights_bytes: of one replica, at least.
    """
    replicas, share = service.plan.size, service.pool.gpus_per_replica
    gpus = len(machine.gpu_bytes)
    if share <= 0:
        return _too_large(replicas, weights_bytes, machine.memory_bytes, "this machine")
    room = math.floor(gpus / share) if share > 1 else gpus * math.floor(1 / share + 1e-9)
    if replicas > room:
        return (
            f"the plan has {_count(replicas, 'replica')} with pool.gpus_per_replica {share:g}, and torch finds "
            f"{_count(gpus, 'GPU')} here, enough for {room}; plan fewer replicas, or set RAY_ADDRESS to a cluster"
        )
    together = min(replicas, math.floor(1 / share + 1e-9)) if share <= 1 else 1
    return _too_large(together, weights_bytes, min(machine.gpu_bytes), "its smallest GPU")


def _too_large(replicas: int, weights_bytes: int, free_bytes: int, of: str) -> str | None:
    if replicas * weights_bytes <= free_bytes:
        return None
    return (
        f"the weights do not fit, not counting what images and judges need: {_count(replicas, 'replica')} of "
        f"{_gib(weights_bytes)} in {_gib(free_bytes)} of free memory of {of}; plan fewer replicas, end what takes the "
        "memory, or serve a smaller family"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"


def free_memory() -> int:
    """Free memory, bytes: of the machine, or of this container if that has less."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or one without a limit
        return free


def free_gpu_memory() -> tuple[int, ...]:
    """Free memory of each GPU that torch finds, bytes.

    Another process looks, because a process that has asked CUDA keeps some of the memory.
    """
    if not any(map(os.path.exists, _GPU_DEVICES)):
        return ()
    try:
        command = [sys.executable, "-c", _FREE_ON_GPUS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPUS_S, check=True)
        return tuple(json.loads(done.stdout))
    except (subprocess.SubprocessError, ValueError):
        return ()


def scratch_folder() -> Path:
    """Creates an empty folder for the temporary files of a service.

    Raises:
        ServiceError: neither ``/tmp`` nor ``TMPDIR`` has room; the message has the remedy.
    """
    candidates = dict.fromkeys(["/tmp", os.environ.get("TMPDIR", "/tmp")])
    return Path(tempfile.mkdtemp(prefix="weir-", dir=chosen([_place(path) for path in candidates])))


def chosen(places: Sequence[Place]) -> str:
    """The first suitable place.

    Raises:
        ServiceError: none is; the message says why.
    """
    problems = []
    for place in places:
        problem = place.problem
        if not problem and len(place.path) > LONGEST_SCRATCH:
            problem = f"its path has {len(place.path)} characters, and Ray's sockets allow {LONGEST_SCRATCH}"
        if not problem and place.free_bytes < SCRATCH_BYTES:
            problem = f"{place.free_bytes // 2**20} MiB are free, and {SCRATCH_BYTES // 2**20} MiB are needed"
        if not problem:
            return place.path
        problems.append(f"{place.path}: {problem}")
    raise ServiceError(
        f"no folder for temporary files ({'; '.join(problems)}); make room in /tmp, or set TMPDIR to a folder with "
        "room and a short path"
    )


def _place(path: str) -> Place:
    try:
        found = Path(path).stat()
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            return Place(path, problem="other users can rename what is in it; set its sticky bit with `chmod +t`")
        with tempfile.TemporaryFile(dir=path):
            return Place(path, shutil.disk_usage(path).free)
    except OSError as error:
        return Place(path, problem=error.strerror or str(error))
