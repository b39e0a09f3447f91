"""Routes a Serve handle call to the replica that the dispatcher chose."""

from __future__ import annotations

import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class ChosenReplicaRouter(RequestRouter):
    """Routes a call to the replica whose id is the handle's ``session_id``.

    Stateless. A call without an id, or to a replica that is gone, may go anywhere, in random order.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        chosen = ""
        if pending_request is not None:
            chosen = pending_request.metadata.session_id
            pending_request.routing_context.should_backoff = True  # else a full replica is polled in a busy loop
        for replica in candidate_replicas:
            if replica.replica_id.unique_id == chosen:
                return [[replica]]
        return [random.sample(candidate_replicas, len(candidate_replicas))]
