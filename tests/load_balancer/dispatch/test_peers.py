"""Load balancers that tell each other what they send predict the same queues, and share the replicas."""

from __future__ import annotations

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import Kind
from load_balancer.dispatch.peers import Left, PeerBooks, Replied, Sent
from load_balancer.dispatch.service_times import ServiceTimes
from testing.toy_family import PROFILE
from weir.plan import HEAVY, Plan
from weir.profiles import Profile

PLAN = Plan.split(1, 1, 4, light_batch=4, heavy_batch=2, threshold=0.5)
HEAVY_IMAGE = Kind(HEAVY, HEAVY)


def books(name: str) -> tuple[Dispatcher, PeerBooks]:
    dispatcher = Dispatcher(PLAN, ServiceTimes(Profile.model_validate(PROFILE)))
    dispatcher.sync({"replica": f"r{rank}", "rank": rank} for rank in range(5))
    return dispatcher, PeerBooks(dispatcher, name)


def test_an_image_of_a_peer_counts_until_its_reply() -> None:
    dispatcher, peers = books("a")
    peers.hear("b", [Sent("r1", "image", HEAVY_IMAGE, False)], 0.0)
    assert dispatcher.replicas.outstanding["r1"] == 1
    peers.hear("b", [Replied("r1", "image", 1, 0.5, 1, 0), Left("r1", "image")], 0.5)
    assert dispatcher.replicas.outstanding["r1"] == 0


def test_a_peers_image_is_not_taken_for_one_of_the_same_name() -> None:
    dispatcher, peers = books("a")
    dispatcher.assign("r1", "image", HEAVY_IMAGE, 0.0)
    peers.hear("b", [Sent("r1", "image", HEAVY_IMAGE, False), Left("r1", "image")], 0.0)
    assert dispatcher.replicas.outstanding["r1"] == 1


def test_the_images_of_a_peer_that_is_lost_are_forgotten() -> None:
    dispatcher, peers = books("a")
    peers.follow({"b", "c"}, 0.0)
    assert peers.share == 1 / 3
    peers.hear("b", [Sent("r1", "image", HEAVY_IMAGE, False)], 0.0)
    peers.follow({"c"}, 1.0)
    assert dispatcher.replicas.outstanding["r1"] == 0
    assert peers.share == 1 / 2


def test_two_load_balancers_send_simultaneous_images_to_different_replicas() -> None:
    chosen = []
    for name, other in (("a", "b"), ("b", "a")):
        dispatcher, peers = books(name)
        peers.follow({other}, 0.0)
        choice = dispatcher.pick(HEAVY_IMAGE, 0.0)
        assert choice is not None
        chosen.append(choice.replica)
    assert chosen == ["r1", "r2"]


def test_a_part_that_is_much_later_is_left_for_another_replica() -> None:
    dispatcher, peers = books("a")
    peers.follow({"b"}, 0.0)
    for number in range(40):
        dispatcher.assign(("r1", "r3")[number % 2], str(number), HEAVY_IMAGE, 0.0)
    choice = dispatcher.pick(HEAVY_IMAGE, 0.0)
    assert choice is not None
    assert choice.replica in ("r2", "r4")
