"""Keeps a replica's own gRPC server on the loopback interface.

Every Serve replica opens a gRPC port on all interfaces, whatever address its node has, and what arrives there is
unpickled. Handle calls do not use it unless ``RAY_SERVE_USE_GRPC_BY_DEFAULT`` says so. Ray 2.60 has no switch but
TLS, so the one call that binds it is given another address; ``tests/deploy/test_guarded_service.py`` sees when that
stops working.
"""

from __future__ import annotations

import os
from typing import Any

#: Set where the whole cluster is on this machine.
SWITCH = "WEIR_LOOPBACK"


def keep_to_loopback() -> None:
    """Called in a replica before its server starts: in the constructor of what it serves."""
    if os.environ.get(SWITCH) != "1":
        return
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    if getattr(bind, "kept", False):
        return

    def kept(server: Any, address: str) -> int:
        return bind(server, address.replace("[::]:", "127.0.0.1:"))

    kept.kept = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = kept
