"""A Ray cluster to deploy on: the one that ``RAY_ADDRESS`` names, or one of our own that leaves nothing behind."""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from weir.loopback import SWITCH

REPOSITORY = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = 512 * 2**20
STOP_TIMEOUT_S = 20.0


@contextmanager
def cluster(cpus: float, gpus: float = 0) -> Iterator[str]:
    """Gives the http address of the dashboard of a running Ray cluster.

    An own cluster listens on 127.0.0.1, on free ports, keeps its files in a temporary folder, and offers at least
    ``cpus`` logical CPUs, for on one machine they are bookkeeping. When the block ends, its processes and its files are
    gone. A cluster named by ``RAY_ADDRESS`` is only connected to.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's processes import this checkout, wherever the command was typed.
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if not os.environ.get("RAY_ADDRESS"):
        # The switch that keeps Ray on the loopback interface; without it Ray replaces 127.0.0.1 by the host's address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Whoever reaches a Ray cluster can run code on it: without the token nobody does.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ[SWITCH] = "1"
        # On a busy machine Serve's proxy takes longer than the 5 s after which Serve kills it.
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        # Serve starts a dead proxy again when three looks have failed, and by itself looks every ten seconds.
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
        # Ray runs its workers at nice 15, and any other busy process starves them: here the workers are the service.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Prometheus scrapes every five seconds; there is no use in telling its figures half as often.
        os.environ.setdefault("RAY_metrics_report_interval_ms", "5000")
        # Ray would take the same two ports for its own figures in every cluster of a machine.
        os.environ |= {name: str(_free_port()) for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")}
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        context = ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        try:
            yield f"http://{context.dashboard_url}"
        finally:
            ray.shutdown()
        return

    # Unix sockets have short paths; a long TMPDIR would not fit.
    folder = tempfile.mkdtemp(prefix="weir-", dir="/tmp")
    before = set(psutil.Process().children(recursive=True))
    try:
        context = ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),
            num_gpus=math.ceil(gpus) or None,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            **quiet,
        )
        yield f"http://{context.dashboard_url}"
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        end(started)
        shutil.rmtree(folder, ignore_errors=True)


def targets_file() -> Path | None:
    """Where Ray lists what Prometheus has to scrape of the cluster that this process is connected to: on the head node,
    some seconds after its start, and again as nodes come and go. None without a connection."""
    import ray

    node: Any = ray._private.worker.global_worker.node
    return node and Path(node.get_session_dir_path()) / "prom_metrics_service_discovery.json"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end(processes: set[psutil.Process]) -> None:
    """Waits until the processes have ended, and kills those that will not."""
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
