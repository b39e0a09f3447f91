"""One load balancer's part in what all of them share: presence, books, jobs, quotas, images, controls and the lease."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from redis.asyncio.lock import Lock

from load_balancer.admin_controls import AdminControls
from load_balancer.admission.quotas import Quotas
from load_balancer.dispatch.peers import PeerBooks, Peering
from load_balancer.lease import LEASE_S
from load_balancer.shared.bounded_files import BoundedFiles
from load_balancer.shared.job_ledger import JobLedger, JobRecord, Sharing
from load_balancer.shared.peer_link import PeerLink
from load_balancer.shared.presence import BEAT_S, Presence
from load_balancer.shared.shared_quotas import SharedQuotas
from load_balancer.shared.store import SharedStore
from weir.config import StateConfig
from weir.errors import NotReady

log = logging.getLogger(__name__)

#: Seconds for which the answers of ended jobs, and images behind URLs, are kept.
KEPT_S = 600.0
#: Longest time that a change of the controls takes, with a check of a policy or a purge, and that another one waits.
CHANGE_S, WAIT_S = 120.0, 5.0
#: Seconds for which the controls of a deployment are kept after their last change: longer than any pin.
CONTROLS_KEPT_S = 30 * 24 * 3600
MEBIBYTE = 2**20

_LEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_GIVE_UP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RunsJobs(Protocol):
    """What is needed of :class:`load_balancer.http.jobs.Jobs`."""

    async def take_over(self, record: JobRecord) -> None: ...

    async def cancel(self, number: str) -> None: ...


class SharedState:
    """Lives on the event loop of the load balancer.

    Args:
        name: of this load balancer, never reused.
        deployment: names what is deployed; another one begins without the operator's controls of this one.
        process: of this load balancer, as :func:`weir.actor_process.own_process` describes it.
        end: ends the process of another one.
        clock: seconds of the clock of the load balancer.
    """

    def __init__(
        self,
        store: SharedStore,
        name: str,
        config: StateConfig,
        deployment: str = "",
        process: dict[str, Any] | None = None,
        end: Callable[[dict[str, Any]], None] = lambda process: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._store, self._deployment, self._clock = store, deployment, clock
        self._presence = Presence(store, name, process)
        self._end = end
        self._link = PeerLink(store, name, self._cancel_here)
        self.ledger = JobLedger(store, name, kept_s=KEPT_S, most_bytes=config.answers_mib * MEBIBYTE)
        self.images = BoundedFiles(store, "image", kept_s=KEPT_S, most_bytes=config.images_mib * MEBIBYTE)
        self.quotas = SharedQuotas(store, name, Quotas())
        self._jobs: RunsJobs | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def peering(self) -> Peering:
        """How this load balancer tells the others what it sent to a replica, and what that answered."""
        return Peering(self._presence.name, self._link.tell)

    @property
    def sharing(self) -> Sharing:
        """How the jobs are shared."""
        return Sharing(self.ledger, self._link.ask_to_cancel)

    def run_jobs_by(self, jobs: RunsJobs) -> None:
        """Says who takes over the jobs of lost load balancers."""
        self._jobs = jobs

    async def run(self, books: PeerBooks, controls: AdminControls) -> None:
        """Keeps up with the other load balancers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.publish())
            group.create_task(self._link.hear(books))
            group.create_task(self._follow(books, controls))

    async def take_lease(self, controller: str) -> bool:
        """Takes or renews the lease of the controller that may publish plans; False while another one holds it.

        Raises:
            NotReady: Redis does not answer.
        """
        return bool(await self._store.run(_LEASE, [self._lease], [controller, round(LEASE_S * 1000)], "the lease"))

    async def give_up_lease(self, controller: str) -> None:
        """Releases the lease if the controller has it.

        Raises:
            NotReady: Redis does not answer.
        """
        await self._store.run(_GIVE_UP, [self._lease], [controller], "the lease")

    @asynccontextmanager
    async def changing(self, controls: AdminControls) -> AsyncIterator[None]:
        """Context manager around a change of the controls: no other load balancer changes them meanwhile, and all of
        them follow within a second.

        Raises:
            NotReady: Redis does not answer; nothing may be changed, because the others would not follow.
        """
        lock = self._store.key("controls", "lock")
        async with (
            self._store.redis("the record of the operator's controls") as redis,
            Lock(redis, lock, timeout=CHANGE_S, blocking_timeout=WAIT_S),
        ):
            await self._load(controls)
            yield
            kept = json.dumps(controls.to_dict(), separators=(",", ":"))
            await redis.set(self._controls, kept, ex=CONTROLS_KEPT_S)

    async def _follow(self, books: PeerBooks, controls: AdminControls) -> None:
        """Gives signs of life, follows the operator's controls, and takes over from load balancers that are lost."""
        while True:
            try:
                others = await self._presence.beat()
                books.follow(others.alive, self._clock())
                await self._load(controls)
                for lost in others.lost:
                    await self._take_over(lost)
                for dead, process in others.dead.items():
                    await self._bury(dead, process)
            except NotReady:
                pass  # it has been logged; what is known of the others stays
            except Exception:
                log.exception("this load balancer does not follow the others")
            await asyncio.sleep(BEAT_S)

    async def _take_over(self, lost: str) -> None:
        if self._jobs is None:
            return
        for record in await self.ledger.take_over(lost):
            await self._jobs.take_over(record)
        await self.quotas.forget(lost)

    async def _bury(self, dead: str, process: dict[str, Any] | None) -> None:
        """Ends a process that gives no sign of life. Serve would not, while it takes in a plan: its health is not
        checked meanwhile. Connections to it end, so that the front door sends their requests to others."""
        if await self._presence.forget(dead) and process is not None:
            log.warning("load balancer %s gives no sign of life, and is killed; Ray Serve replaces it", dead)
            await asyncio.to_thread(self._end, process)

    async def _load(self, controls: AdminControls) -> None:
        async with self._store.redis("the operator's controls") as redis:
            kept = await redis.get(self._controls)
        if kept is not None:
            controls.follow(json.loads(kept))

    def _cancel_here(self, number: str) -> None:
        if self._jobs is not None:
            task = asyncio.get_running_loop().create_task(self._jobs.cancel(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def _lease(self) -> str:
        return self._store.key("lease")

    @property
    def _controls(self) -> str:
        return self._store.key("controls", self._deployment)
