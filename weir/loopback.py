"""Binds a replica's gRPC server to the loopback interface.

Every Ray Serve replica opens a gRPC port on all interfaces, regardless of its node's address, and unpickles what it
receives there. Handle calls use this port only with ``RAY_SERVE_USE_GRPC_BY_DEFAULT``. Ray 2.60 has no option against
it except TLS, so the call that binds the port is replaced by one with another address.
``tests/deploy/test_guarded_service.py`` fails if that stops working.
"""

from __future__ import annotations

import os

from weir.ray_private import bind_replicas_to_loopback

#: Environment variable that is set when the whole cluster runs on this machine.
SWITCH = "WEIR_LOOPBACK"


def keep_to_loopback() -> None:
    """Binds the gRPC server of this replica to 127.0.0.1. Call it in the deployment's constructor."""
    if os.environ.get(SWITCH) == "1":
        bind_replicas_to_loopback()
