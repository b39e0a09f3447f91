"""A Ray cluster to deploy on: the one at ``RAY_ADDRESS``, or a local one that is removed completely afterwards."""

from __future__ import annotations

import csv
import logging
import math
import os
import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from deploy import haproxy
from deploy.cause import reason
from weir import ray_private
from weir.assets import import_path
from weir.errors import ConfigError, NotReady, ServiceError
from weir.files import is_private, keep_private, make_folder
from weir.loopback import SWITCH
from weir.own_code import FOLDER
from weir.ports import free_port
from weir.proxies import spare_loopback

OBJECT_STORE_BYTES = 512 * 2**20
STOP_TIMEOUT_S = 20.0
#: Attempts to start Ray. On a busy machine its own time limits are too short.
STARTS = 3
#: Folder of the state of Ray's GCS, in that of Ray's files.
STATE = "gcs"
#: Restarts of Ray's GCS within a time, in seconds, after which one more is not tried.
RESTARTS, RESTARTS_S = 3, 60.0
#: Last lines of each of Ray's logs that are kept of a start that failed.
LOG_LINES = 10

#: Options of every ``ray.init``: the logs of tasks stay in Ray's files.
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

T = TypeVar("T")
_log = logging.getLogger(__name__)


def existing() -> str | None:
    """Address of the cluster to connect to; None: start one on this machine, as Ray does without an address."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


@contextmanager
def cluster(
    cpus: float,
    gpus: float = 0,
    nodes: int = 0,
    *,
    folder: Path | None = None,
    report: Callable[[str], None] = lambda waiting_for: None,
) -> Iterator[str]:
    """Context manager that yields the HTTP address of the dashboard of a running Ray cluster.

    A local cluster listens on free ports of 127.0.0.1 and keeps its files in a temporary folder. It offers at least
    ``cpus`` logical CPUs, because on one machine their number is only bookkeeping. When the block ends, its processes
    and files are removed. To a cluster at ``RAY_ADDRESS`` the block only connects.

    Args:
        nodes: number of nodes beside the head. They have raylets of their own and share the CPUs and GPUs evenly, and
            the head has none, as on a cluster of several machines. 0: the head has all CPUs and GPUs.
        folder: empty folder for the files of a local cluster, with a short path; None: a new one in ``/tmp``.
        report: called with what the start waits for.

    Raises:
        NotReady: other users can reach the folder, or Ray did not start or accept the connection; the message has the
            cause and the remedy.
    """
    _set_environment()
    address = existing()
    with _connected(address, report) if address else _local(cpus, gpus, nodes, folder, report) as dashboard:
        yield dashboard


@contextmanager
def _local(cpus: float, gpus: float, nodes: int, folder: Path | None, report: Callable[[str], None]) -> Iterator[str]:
    """Context manager of a cluster on this machine; see :func:`cluster`."""
    import ray

    ray_private.allow_loopback()
    # The path of a Unix socket has a maximum length, which a long TMPDIR would exceed.
    folder = folder or Path(tempfile.mkdtemp(prefix="weir-", dir="/tmp"))
    if not is_private(folder):  # Ray gives all users all rights to its folders
        raise NotReady(f"other users can reach {folder}, the folder of Ray's files; close it with `chmod 700 {folder}`")
    before = set(psutil.Process().children(recursive=True))
    kept = keep_token(folder) + keep_state(folder / STATE)

    def start_head() -> Any:
        shutil.rmtree(folder / STATE, ignore_errors=True)  # of an attempt that was too slow
        return ray.init(
            address="local",
            num_cpus=0 if nodes else max(os.cpu_count() or 1, math.ceil(cpus)),
            num_gpus=None if nodes else math.ceil(gpus) or None,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
            **QUIET,
        )

    try:
        with explained(folder):
            context = started(start_head, report)
            for _ in range(nodes):
                start_node(math.ceil(cpus / nodes), math.ceil(gpus / nodes), report)
        yield f"http://{context.dashboard_url}"
    finally:
        processes = set(psutil.Process().children(recursive=True)) - before
        broken = ray_private.ended_part()
        if not broken:  # else Ray would end this process at once, before it has removed the files
            ray.shutdown()
        ray_private.forget_serve()
        # What Ray leaves would wait for the head, which has ended.
        end(processes)
        for name in kept:
            del os.environ[name]
        shutil.rmtree(folder, ignore_errors=True)


def _set_environment() -> None:
    """Sets the variables that Ray and its processes inherit, unless the user has set them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    spare_loopback()
    # Ray's processes import the same packages as this one, whatever the working directory is.
    paths = [*import_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    os.environ.setdefault(FOLDER, os.getcwd())
    if existing() is None:
        # Keeps Ray on the loopback interface; without this Ray replaces 127.0.0.1 by the host's address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Every client that reaches a Ray cluster can run code on it, so require the token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ[SWITCH] = "1"
        # Clients do not reach Ray Serve's own paths and headers, and connections have limits.
        os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "load_balancer.http.front_door.front_door")
        # On a busy machine Ray's GCS server needs longer than the 20 s for which Ray tries to connect to it.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "60")
        # On a busy machine Ray Serve's proxy needs longer than the 5 s after which Ray Serve kills it.
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        # Ray Serve restarts a proxy after three failed checks, and checks only every ten seconds by default.
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
        # A replica that failed three health checks will not finish its requests; its successor need not wait for it.
        os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
        # Ray runs its workers at nice 15, so any busy process starves them; here the workers are the service.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Prometheus scrapes every five seconds; by default Ray reports only half as often.
        os.environ.setdefault("RAY_metrics_report_interval_ms", "5000")
        # By default each thread has a malloc arena of its own, and memory freed in one is not reused in another.
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")
        # By default every cluster of a machine uses the same two ports for Ray's own metrics.
        os.environ |= {name: str(free_port()) for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")}


@contextmanager
def _connected(address: str, report: Callable[[str], None]) -> Iterator[str]:
    import ray

    report(f"Ray at {address} to accept the connection")
    try:
        context = ray.init(address=address, **QUIET)
    except Exception as error:  # of many types, down to plain RuntimeErrors
        raise NotReady(f"Ray at {address} did not accept the connection: {reason(error)}") from error
    try:
        yield f"http://{context.dashboard_url}"
    finally:
        ray.shutdown()


def keep_token(folder: Path) -> tuple[str, ...]:
    """Keeps Ray's token where only this user can read it: Ray itself would let all users of the machine read it.

    It is in ``~/.ray``, for further programs of the user that connect to the cluster, or in the folder where the home
    folder cannot be written, as in many containers.

    Returns:
        The environment variables that were set.
    """
    names = ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")
    if os.environ["RAY_AUTH_MODE"] != "token" or any(name in os.environ for name in names):
        return ()
    token = Path.home() / ".ray" / "auth_token"
    try:
        if not os.access(token, os.R_OK):
            make_folder(token.parent)
            _write_token(token)
        else:
            keep_private(token)
    except (ConfigError, OSError) as error:
        token = folder / "auth_token"
        _write_token(token)
        os.environ[names[0]] = str(token)
        _log.warning("Ray's token is in %s, because of the home folder: %s", token, error)
        return names[:1]
    return ()


def _write_token(token: Path) -> None:
    token.touch(mode=0o600, exist_ok=False)
    token.write_text(secrets.token_hex(32))


def keep_state(folder: Path) -> tuple[str, ...]:
    """Has Ray's GCS keep its state in files, so that :class:`RayWatch` can start it again, unless the user has chosen.

    Returns:
        The environment variables that were set.
    """
    if "RAY_gcs_storage" in os.environ or "RAY_REDIS_ADDRESS" in os.environ:
        return ()
    given = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder)}
    os.environ.update(given)
    return tuple(given)


@contextmanager
def behind_haproxy(folder: Path, silent_s: float) -> Iterator[None]:
    """Has Ray, started in this block, put its HAProxy before several load balancers.

    Args:
        folder: for files of HAProxy, with a short path.
        silent_s: longest time in which a load balancer that works says nothing to a client that waits, seconds.
    """
    given = haproxy.environment(folder, (free_port(), free_port()), silent_s)
    given = {name: value for name, value in given.items() if name not in os.environ}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)


def haproxy_knows(balancers: int) -> bool:
    """Whether the HAProxy of :func:`behind_haproxy` gives requests to so many load balancers. True if there is none,
    because the environment of the user has switched it off."""
    if os.environ.get(haproxy.ENABLED) != "1":
        return True
    url = f"http://127.0.0.1:{os.environ[haproxy.STATISTICS_PORT]}/stats;csv"
    try:
        answer = httpx.get(url, timeout=5, trust_env=False).raise_for_status()
    except httpx.HTTPError:
        return False
    servers = csv.DictReader(answer.text.removeprefix("# ").splitlines())
    known = [it for it in servers if it["bck"] == "0" and it["svname"] != "BACKEND" and it["status"].startswith("UP")]
    return len(known) >= balancers


class RayWatch:
    """Watches Ray's main processes of a cluster that this process has started, and starts the GCS again when it has
    ended: nodes, replicas and requests go on meanwhile.

    Call it from one thread that lives as long as the cluster, with which Linux ends the GCS.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._restarts: deque[float] = deque(maxlen=RESTARTS)

    def check(self) -> None:
        """Starts the GCS again if it has ended.

        Raises:
            ServiceError: another main process has ended, and the service with it, or the GCS ends again and again.
        """
        part = ray_private.ended_part()
        if not part:
            return
        now, remedy = self._clock(), "it crashed or was killed, maybe because memory ran out. Start the service again"
        if part != "gcs_server":
            raise ServiceError(f"Ray's process {part} has ended; {remedy}")
        if len(self._restarts) == RESTARTS and now - self._restarts[0] < RESTARTS_S:
            raise ServiceError(f"Ray's process {part} has ended {RESTARTS + 1} times within {RESTARTS_S:g} s; {remedy}")
        self._restarts.append(now)
        try:
            ray_private.restart_gcs()
        except Exception as error:  # of many types, down to plain Exceptions
            raise ServiceError(f"Ray's process {part} has ended and did not start again: {reason(error)}") from error
        _log.warning("Ray's process %s ended, and was started again", part)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Translates an exception of Ray's start to a sentence, and logs the end of Ray's logs, which will be deleted."""
    try:
        yield
    except NotReady:
        _log.error("%s", _ends_of_logs(folder))
        raise
    except Exception as error:  # of many types, down to plain Exceptions
        _log.exception("Ray did not start:\n%s", _ends_of_logs(folder))
        raise NotReady(f"Ray did not start: {reason(error)}") from error


def _ends_of_logs(folder: Path) -> str:
    parts = []
    for log in sorted(folder.glob("session_2*/logs/*")):
        if log.suffix in (".err", ".out", ".log") and (lines := log.read_text(errors="replace").splitlines()):
            parts += [f"{log.name}:", *lines[-LOG_LINES:]]
    return "\n".join(parts)


def started(start: Callable[[], T], report: Callable[[str], None] = lambda waiting_for: None) -> T:
    """Calls ``start``, which starts processes of Ray. If they are too slow, ends them and calls it again.

    Args:
        report: called with what the start waits for.

    Raises:
        NotReady: Ray's processes were too slow in all of :data:`STARTS` attempts.
        Exception: of an attempt that failed for another reason.
    """
    for attempt in range(1, STARTS + 1):
        report(f"Ray's processes (attempt {attempt} of {STARTS})")
        before = set(psutil.Process().children(recursive=True))
        try:
            return start()
        except Exception as error:
            if not ray_private.started_too_slowly(error):
                raise
            _log.warning("Ray was too slow to start, attempt %d of %d: %s", attempt, STARTS, error)
            end(set(psutil.Process().children(recursive=True)) - before)
            last = error
    raise NotReady(too_slow(os.getloadavg()[0], os.cpu_count() or 1, psutil.virtual_memory().available)) from last


def too_slow(load: float, cpus: int, free_bytes: int) -> str:
    """The sentence for a machine on which Ray's processes do not come up in time."""
    return (
        f"Ray's processes did not come up in time, in {STARTS} attempts, on a machine with a load of {load:.1f} on "
        f"{cpus} CPUs and {free_bytes / 2**30:.1f} GiB of free memory; stop other work, or use a larger machine, and "
        "try again"
    )


def start_node(cpus: int, gpus: int = 0, report: Callable[[str], None] = lambda waiting_for: None) -> None:
    """Starts one more node of the cluster that this process is connected to."""
    import ray

    # Several nodes share the address, so each uses free ports.
    ports = ("node_manager_port", "min_worker_port", "max_worker_port", "dashboard_agent_listen_port")
    fields: dict[str, Any] = dict.fromkeys(ports, 0)
    fields["include_log_monitor"] = False
    fields |= {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": OBJECT_STORE_BYTES // 4}
    fields |= {"gcs_address": ray.get_runtime_context().gcs_address, "node_ip_address": "127.0.0.1"}
    started(lambda: ray_private.start_node(**fields), report)


def targets_file() -> Path | None:
    """The file in which Ray lists the Prometheus targets of the cluster that this process is connected to.

    Ray writes it on the head node some seconds after its start, and again as nodes join and leave. None without a
    connection.
    """
    folder = ray_private.session_folder()
    return folder and folder / "prom_metrics_service_discovery.json"


def end(processes: set[psutil.Process]) -> None:
    """Kills the processes, and waits until they have ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
