"""The live replicas with the models of their queues, and what they add up to."""

from __future__ import annotations

from load_balancer.dispatch.finish_time import ReplicaQueueModel


class Replicas(dict[str, ReplicaQueueModel]):
    """The queue models of the live replicas, by id."""

    def role_of(self, replica: str) -> str:
        """The role of a live replica under the plan in force; "" when the replica is gone."""
        it = self.get(replica)
        return it.role if it else ""

    def ready(self, role: str) -> int:
        """Number of live replicas of the role."""
        return sum(it.role == role for it in self.values())

    @property
    def ranks(self) -> list[int]:
        """Ranks of the live replicas, in ascending order."""
        return sorted(it.rank for it in self.values())

    def queued(self, role: str) -> int:
        """Number of images that wait in the queues of the role's replicas."""
        return sum(it.waiting for it in self.values() if it.role == role)

    def capacity_rps(self, role: str, variant: str) -> float:
        """Images per second that the role's replicas generate in full batches of the variant; 0 while no batch time is
        known."""
        seconds = [(it.batch_size, it.times.seconds(variant, it.batch_size)) for it in self.values() if it.role == role]
        return sum(size / batch_s for size, batch_s in seconds if batch_s > 0)

    @property
    def outstanding(self) -> dict[str, int]:
        """Number of images sent to each replica and not answered yet."""
        return {it.id: it.outstanding for it in self.values()}
