"""Everything of Ray that is called here and that Ray does not promise to keep. No other module calls any of it.

Each function names what it uses, why nothing public does, and what shows that it has stopped working. All were checked
with Ray 2.60.0; check them again with every other version. ``tests/weir/test_ray_private.py`` keeps the rest of the
code out of Ray's private parts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentBroadcastResponse

#: What Ray says when a node that it has started has not registered within its limit.
_SLOW_START = (
    "timed out during startup",
    "Failed to start GCS",
    "Failed to connect to GCS",
    "raylet_start_wait_time_s",
)


def allow_loopback() -> None:
    """Lets a cluster have the address 127.0.0.1, which Ray else replaces by the host's address.

    ``ray_constants.ENABLE_RAY_CLUSTER``: Ray reads its switch RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER once, as it is
    imported, and something may have imported it before. ``tests/deploy/test_guarded_service.py`` finds ports on other
    addresses.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def bind_replicas_to_loopback() -> None:
    """Has the gRPC server of the replica that this process is about to be listen on 127.0.0.1 only.

    ``ray.serve._private.replica.add_port_to_grpc_server``: Serve binds ``[::]``, and its only switch is TLS.
    ``tests/deploy/test_guarded_service.py`` finds ports on other addresses.
    """
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    if getattr(bind, "on_loopback", False):
        return

    def on_loopback(server: Any, address: str) -> int:
        port: int = bind(server, address.replace("[::]:", "127.0.0.1:"))
        return port

    on_loopback.on_loopback = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = on_loopback


def start_node(**fields: Any) -> None:
    """Starts one more node of a cluster, as ``ray.cluster_utils`` does it; it ends with this process.

    ``ray._private.node.Node`` and ``RayParams``: the command ``ray start`` would have the node listen on the host's
    address. ``tests/deploy/test_control.py`` starts two.

    Args:
        fields: of ``RayParams``.

    Raises:
        Exception: see :func:`started_too_slowly`.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    Node(RayParams(**fields), head=False, shutdown_at_exit=False)


def started_too_slowly(error: Exception) -> bool:
    """Whether Ray failed to start a node because its processes did not come up in time, as on a busy machine.

    Ray waits 30 seconds for a node (``ray/_private/node.py``), and the node's raylet gives its agents 15 seconds, both
    without a switch, and what it raises is a plain ``Exception``: only the message tells.
    """
    return any(part in str(error) for part in _SLOW_START)


def session_folder() -> Path | None:
    """The folder in which Ray keeps the files of the cluster that this process is connected to; None without one.

    ``ray._private.worker.global_worker.node``: Ray's public context has no folder.
    ``tests/deploy/test_cached_service.py`` finds Prometheus without targets.
    """
    import ray

    node: Any = ray._private.worker.global_worker.node
    return node and Path(node.get_session_dir_path())


def ended_part() -> str:
    """Name of the process of a cluster that this process has started, raylet or gcs_server, that has ended; empty while
    both run, and for a cluster that was there before.

    ``ray._private.worker.global_worker.node.dead_processes``: publicly, calls to a cluster whose raylet has ended just
    do not return. ``tests/deploy/test_local.py`` kills a raylet.
    """
    import ray

    node: Any = ray._private.worker.global_worker.node
    ended = {name for name, _ in node.dead_processes()} if node else set()
    return next((name for name in ("raylet", "gcs_server") if name in ended), "")


def restart_gcs() -> None:
    """Starts the GCS server of a cluster that this process has started again, on its port, after it has ended.

    It reads its state from the folder that ``RAY_gcs_storage_path`` names. The new process ends with this thread.

    ``ray._private.worker.global_worker.node``: publicly, only ``ray start`` starts a GCS server, with a raylet.
    ``tests/deploy/test_local.py`` kills a GCS server.

    Raises:
        Exception: see :func:`started_too_slowly`.
    """
    import ray

    node: Any = ray._private.worker.global_worker.node
    node.kill_gcs_server(check_alive=False)  # forgets the process that has ended
    node.start_gcs_server()


def dashboard_address() -> str:
    """Host and port of the dashboard of the cluster that this process belongs to; empty when it has none.

    ``ray._private.services.get_webui_url_from_internal_kv``: publicly, only the process that called ``ray.init`` is
    told. ``tests/deploy/test_control.py`` would see no plan published.
    """
    from ray._private.services import get_webui_url_from_internal_kv

    return get_webui_url_from_internal_kv() or ""


async def broadcast_results(response: DeploymentBroadcastResponse) -> list[Any]:
    """The pending result of each replica that a broadcast went to, to be awaited by its ``get_async``.

    ``_fetch_replica_results_async``: the public way has one time limit for all, so that one replica that hangs would
    hide the others. ``tests/load_balancer/test_serve.py`` would see no replica.

    Raises:
        RayServeException: no replica is routable.
    """
    results: list[Any] = await response._fetch_replica_results_async()
    return results


def forget_serve() -> None:
    """Has Serve forget the cluster that has ended.

    ``ray.serve.context._set_global_client``: Serve keeps its client by the job's number, and the next cluster of this
    process has a job of the same number. Tests of clusters in one process would then talk to the one before.
    """
    if "ray.serve.context" in sys.modules:
        sys.modules["ray.serve.context"]._set_global_client(None)
