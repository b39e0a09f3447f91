"""Keeps a replica's own gRPC server on the loopback interface.

Every Serve replica opens a gRPC port on all interfaces, whatever address its node has, and what arrives there is
unpickled. Handle calls do not use it unless ``RAY_SERVE_USE_GRPC_BY_DEFAULT`` says so. Ray 2.60 has no switch but
TLS, so the one call that binds it is given another address; ``tests/deploy/test_guarded_service.py`` sees when that
stops working.
"""

from __future__ import annotations

import os

from weir.ray_private import bind_replicas_to_loopback

#: Set where the whole cluster is on this machine.
SWITCH = "WEIR_LOOPBACK"


def keep_to_loopback() -> None:
    """Called in a replica before its server starts: in the constructor of what it serves."""
    if os.environ.get(SWITCH) == "1":
        bind_replicas_to_loopback()
