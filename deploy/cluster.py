"""A Ray cluster to deploy on: the one at ``RAY_ADDRESS``, or a local one that is removed completely afterwards."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from weir.loopback import SWITCH
from weir.ports import free_port
from weir.proxies import spare_loopback

REPOSITORY = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = 512 * 2**20
STOP_TIMEOUT_S = 20.0


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
    # Ray's processes import this checkout, whatever the working directory is.
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if not os.environ.get("RAY_ADDRESS"):
        # Keeps Ray on the loopback interface; without this Ray replaces 127.0.0.1 by the host's address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Every client that reaches a Ray cluster can run code on it, so require the token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ[SWITCH] = "1"
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
    from ray._private import ray_constants

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        context = ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        try:
            yield f"http://{context.dashboard_url}"
        finally:
            ray.shutdown()
        return

    ray_constants.ENABLE_RAY_CLUSTER = False  # same as above, if Ray was imported before the variable was set
    # The path of a Unix socket has a maximum length, which a long TMPDIR would exceed.
    folder = tempfile.mkdtemp(prefix="weir-", dir="/tmp")
    before = set(psutil.Process().children(recursive=True))
    try:
        context = ray.init(
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
        for _ in range(nodes):
            start_node(math.ceil(cpus / nodes), math.ceil(gpus / nodes))
        yield f"http://{context.dashboard_url}"
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        _forget_serve()
        # Processes that Ray leaves of the other nodes would wait for the head, which has ended.
        end(started, timeout_s=0 if nodes else STOP_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


def _forget_serve() -> None:
    """Makes Ray Serve forget its client, which it keeps by job number: the next cluster's job has the same number."""
    if "ray.serve.context" in sys.modules:
        sys.modules["ray.serve.context"]._set_global_client(None)


def start_node(cpus: int, gpus: int = 0) -> None:
    """Starts one more node of the cluster that this process is connected to, as ``ray.cluster_utils`` does it.

    ``ray start`` cannot be used, because its node would listen on the host's address.
    """
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # Several nodes share the address, so each uses free ports.
    ports = ("node_manager_port", "min_worker_port", "max_worker_port", "dashboard_agent_listen_port")
    fields: dict[str, Any] = dict.fromkeys(ports, 0)
    fields["include_log_monitor"] = False
    fields |= {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": OBJECT_STORE_BYTES // 4}
    address = ray.get_runtime_context().gcs_address
    params = RayParams(gcs_address=address, node_ip_address="127.0.0.1", **fields)
    Node(params, head=False, shutdown_at_exit=False)


def targets_file() -> Path | None:
    """The file in which Ray lists the Prometheus targets of the cluster that this process is connected to.

    Ray writes it on the head node some seconds after its start, and again as nodes join and leave. None without a
    connection.
    """
    import ray

    node: Any = ray._private.worker.global_worker.node
    return node and Path(node.get_session_dir_path()) / "prom_metrics_service_discovery.json"


def end(processes: set[psutil.Process], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Waits until the processes have ended, and kills those that still run after ``timeout_s``."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
