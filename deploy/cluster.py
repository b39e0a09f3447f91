"""A Ray cluster to deploy on: the one that ``RAY_ADDRESS`` names, or one of our own that leaves nothing behind."""

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

OBJECT_STORE_BYTES = 512 * 2**20
STOP_TIMEOUT_S = 20.0
#: How often Ray is started before its failure is the caller's: on a busy machine its own limits strike.
STARTS = 3

T = TypeVar("T")
_log = logging.getLogger(__name__)


@contextmanager
def cluster(cpus: float, gpus: float = 0, nodes: int = 0) -> Iterator[str]:
    """Gives the http address of the dashboard of a running Ray cluster.

    An own cluster listens on 127.0.0.1, on free ports, keeps its files in a temporary folder, and offers at least
    ``cpus`` logical CPUs, for on one machine they are bookkeeping. When the block ends, its processes and its files are
    gone. A cluster named by ``RAY_ADDRESS`` is only connected to.

    Args:
        nodes: 0: the head has it all. Else so many nodes beside it, with raylets of their own, share the CPUs and GPUs
            evenly, and the head has none, as on a cluster of several machines.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's processes import the packages that this one does, wherever the command was typed.
    paths = [*import_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if not os.environ.get("RAY_ADDRESS"):
        # The switch that keeps Ray on the loopback interface; without it Ray replaces 127.0.0.1 by the host's address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Whoever reaches a Ray cluster can run code on it: without the token nobody does.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ[SWITCH] = "1"
        # On a busy machine Ray's own server takes longer than the 20 s for which Ray tries to reach it.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "60")
        # On a busy machine Serve's proxy takes longer than the 5 s after which Serve kills it.
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        # Serve starts a dead proxy again when three looks have failed, and by itself looks every ten seconds.
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
        # Who has failed three health checks is beyond finishing anything; its successor need not wait for it.
        os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
        # Ray runs its workers at nice 15, and any other busy process starves them: here the workers are the service.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Prometheus scrapes every five seconds; there is no use in telling its figures half as often.
        os.environ.setdefault("RAY_metrics_report_interval_ms", "5000")
        # The threads of Ray's processes would have an arena of their own each, and what one has freed no other takes.
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")
        # Ray would take the same two ports for its own figures in every cluster of a machine.
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
    # Unix sockets have short paths; a long TMPDIR would not fit.
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
        # What Ray leaves of the other nodes would wait for the head, which has ended.
        end(processes, timeout_s=0 if nodes else STOP_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


def started(start: Callable[[], T]) -> T:
    """Starts processes of Ray by ``start``; when they do not come up in time, ends them and starts them again.

    Raises:
        Exception: what ``start`` raised, if that was something else or the last of :data:`STARTS`.
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

    # Several nodes share the address, so each takes the ports that are free.
    ports = ("node_manager_port", "min_worker_port", "max_worker_port", "dashboard_agent_listen_port")
    fields: dict[str, Any] = dict.fromkeys(ports, 0)
    fields["include_log_monitor"] = False
    fields |= {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": OBJECT_STORE_BYTES // 4}
    fields |= {"gcs_address": ray.get_runtime_context().gcs_address, "node_ip_address": "127.0.0.1"}
    started(lambda: ray_private.start_node(**fields))


def targets_file() -> Path | None:
    """Where Ray lists what Prometheus has to scrape of the cluster that this process is connected to: on the head node,
    some seconds after its start, and again as nodes come and go. None without a connection."""
    folder = ray_private.session_folder()
    return folder and folder / "prom_metrics_service_discovery.json"


def end(processes: set[psutil.Process], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Waits until the processes have ended, and kills those that have not by then."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
