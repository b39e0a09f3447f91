"""A Ray cluster to deploy on: the one at ``RAY_ADDRESS``, or a local one that is removed completely afterwards."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from weir import ray_private
from weir.assets import import_path
from weir.loopback import SWITCH
from weir.ports import free_port
from weir.proxies import spare_loopback

OBJECT_STORE_BYTES = 512 * 2**20
STOP_TIMEOUT_S = 20.0
#: Attempts to start Ray. On a busy machine its own time limits are too short.
STARTS = 3

T = TypeVar("T")
_log = logging.getLogger(__name__)


@contextmanager
def cluster(cpus: float, gpus: float = 0, nodes: int = 0) -> Iterator[str]:
    """Context manager that yields the HTTP address of the dashboard of a running Ray cluster.

    A local cluster listens on free ports of 127.0.0.1 and keeps its files in a temporary folder. It offers at least
    ``cpus`` logical CPUs, because on one machine their number is only bookkeeping. When the block ends, its processes
    and files are removed. To a cluster at ``RAY_ADDRESS`` the block only connects.

    Args:
        nodes: number of nodes beside the head. They have raylets of their own and share the CPUs and GPUs evenly, and
            the head has none, as on a cluster of several machines. 0: the head has all CPUs and GPUs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    spare_loopback()
    # Ray's processes import the same packages as this one, whatever the working directory is.
    paths = [*import_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if not os.environ.get("RAY_ADDRESS"):
        # Keeps Ray on the loopback interface; without this Ray replaces 127.0.0.1 by the host's address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Every client that reaches a Ray cluster can run code on it, so require the token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ[SWITCH] = "1"
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
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        context = ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        try:
            yield f"http://{context.dashboard_url}"
        finally:
            ray.shutdown()
        return

    ray_private.allow_loopback()
    # The path of a Unix socket has a maximum length, which a long TMPDIR would exceed.
    folder = tempfile.mkdtemp(prefix="weir-", dir="/tmp")
    before = set(psutil.Process().children(recursive=True))
    try:
        context = started(
            lambda: ray.init(
                address="local",
                num_cpus=0 if nodes else max(os.cpu_count() or 1, math.ceil(cpus)),
                num_gpus=None if nodes else math.ceil(gpus) or None,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
                **quiet,
            )
        )
        for _ in range(nodes):
            start_node(math.ceil(cpus / nodes), math.ceil(gpus / nodes))
        yield f"http://{context.dashboard_url}"
    finally:
        processes = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        ray_private.forget_serve()
        # Processes that Ray leaves of the other nodes would wait for the head, which has ended.
        end(processes, timeout_s=0 if nodes else STOP_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


def started(start: Callable[[], T]) -> T:
    """Calls ``start``, which starts processes of Ray. If they are too slow, ends them and calls it again.

    Raises:
        Exception: of the last of :data:`STARTS` attempts, or of any attempt that failed for another reason.
    """
    for attempt in range(1, STARTS + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            return start()
        except Exception as error:
            if attempt == STARTS or not ray_private.started_too_slowly(error):
                raise
            _log.warning("Ray was too slow to start, attempt %d of %d: %s", attempt, STARTS, error)
            end(set(psutil.Process().children(recursive=True)) - before, timeout_s=0)
    raise AssertionError("unreachable")


def start_node(cpus: int, gpus: int = 0) -> None:
    """Starts one more node of the cluster that this process is connected to."""
    import ray

    # Several nodes share the address, so each uses free ports.
    ports = ("node_manager_port", "min_worker_port", "max_worker_port", "dashboard_agent_listen_port")
    fields: dict[str, Any] = dict.fromkeys(ports, 0)
    fields["include_log_monitor"] = False
    fields |= {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": OBJECT_STORE_BYTES // 4}
    fields |= {"gcs_address": ray.get_runtime_context().gcs_address, "node_ip_address": "127.0.0.1"}
    started(lambda: ray_private.start_node(**fields))


def targets_file() -> Path | None:
    """The file in which Ray lists the Prometheus targets of the cluster that this process is connected to.

    Ray writes it on the head node some seconds after its start, and again as nodes join and leave. None without a
    connection.
    """
    folder = ray_private.session_folder()
    return folder and folder / "prom_metrics_service_discovery.json"


def end(processes: set[psutil.Process], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Waits until the processes have ended, and kills those that still run after ``timeout_s``."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
