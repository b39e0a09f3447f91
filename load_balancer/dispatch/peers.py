"""What the load balancers of a service tell each other: which images each sent to which replica, and the replies.

Each load balancer models the queues of all replicas (``dispatcher.py``), from what it sends itself and from what its
peers tell it a moment later. So dispatch, admission and the forecasts of the cascade count the images of all load
balancers, and no lock is needed between them. What a peer has not told yet, the replicas' own reports of their queue
lengths correct, about once a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import BatchReport, ImageId, Kind


class Sent(NamedTuple):
    """An image was sent to a replica."""

    replica: str
    image: ImageId
    kind: Kind
    low_priority: bool


class Replied(NamedTuple):
    """A replica answered with an image; see :meth:`Dispatcher.finished`."""

    replica: str
    image: ImageId
    batch_size: int
    device_s: float
    together: int
    queued: int | None


class Left(NamedTuple):
    """An image is no longer at a replica: it was answered, cancelled, or failed."""

    replica: str
    image: ImageId


#: One entry of a load balancer's book.
Entry = Sent | Replied | Left
#: Tells the peers of an entry.
Tell = Callable[[Entry], None]


class Peering(NamedTuple):
    """How a load balancer takes part in the exchange of books.

    Attributes:
        name: of this load balancer, among those of its peers.
        tell: tells the peers of an entry of its book.
    """

    name: str
    tell: Tell


class PeerImage(NamedTuple):
    """An image of a peer at a replica. It is no string, so that it is never the id of an image of one's own."""

    peer: str
    image: ImageId


class PeerBooks:
    """Keeps the dispatcher's queue models up to date with what peers tell. Lives on the event loop of the balancer.

    Args:
        name: of this load balancer, among those of its peers.
    """

    def __init__(self, dispatcher: Dispatcher, name: str):
        self._name = name
        self._dispatcher = dispatcher
        self._sent: dict[str, dict[PeerImage, str]] = {}  # by peer: the replica of each image

    @property
    def share(self) -> float:
        """The part of the service's limits that this load balancer may admit by itself."""
        return 1 / (1 + len(self._sent))

    def hear(self, peer: str, entries: Iterable[Entry], now: float) -> None:
        """Takes in entries of a peer's book, in their order.

        Args:
            now: seconds, on the clock of this dispatcher.
        """
        sent = self._sent.setdefault(peer, {})
        for entry in entries:
            image = PeerImage(peer, entry.image)
            if isinstance(entry, Sent):
                sent[image] = entry.replica
                self._dispatcher.assign(entry.replica, image, entry.kind, now, low_priority=entry.low_priority)
            elif isinstance(entry, Replied):
                report = BatchReport(
                    entry.batch_size, compute_s=entry.device_s, together=entry.together, queued=entry.queued
                )
                self._dispatcher.finished(entry.replica, image, now, report)
            elif sent.pop(image, None) is not None:
                self._dispatcher.forget(entry.replica, image, now)

    def follow(self, peers: Iterable[str], now: float) -> None:
        """Updates the set of peers. Images of a peer that has ended leave the queue models: nothing waits for them."""
        there = set(peers)
        everyone = sorted((*there, self._name))
        self._dispatcher.prefer_part(everyone.index(self._name), len(everyone))
        for peer in there - self._sent.keys():
            self._sent[peer] = {}
        for peer in self._sent.keys() - there:
            for image, replica in self._sent.pop(peer).items():
                self._dispatcher.forget(replica, image, now)
