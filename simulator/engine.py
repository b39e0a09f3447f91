"""The twin of the cluster: the same policies and plans, discrete events in place of GPUs.

Three kinds of events, in the order of their time: an arrival, the end of a batch, and the controller's tick once a
second. A run is a function of its arguments; the seed drives what a policy leaves to chance (random routing).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from controller.observation import Batch
from controller.policies import Policy
from load_balancer.admission.admission import Admission
from simulator.arrivals import Arrivals
from simulator.fleet import HEAVY, LIGHT, NEVER, ROLE_NAMES, Fleet, Replica
from simulator.outcome import ANSWERED_AT_DEADLINE, ANSWERED_HEAVY, ANSWERED_LIGHT, UNANSWERED, Outcome
from simulator.seat_fleet import SeatFleet, advance, leavers
from simulator.tally import EXPIRY, Tally
from weir.core import Plan, ReplicaChoice, Role, margin_s
from weir.errors import Overloaded

#: Seconds between observations.
TICK_S = 1.0
#: A worker waits no longer for a state (``cache.fetch_s`` of a service).
FETCH_WAIT_S = 0.02
#: Of a prompt that no level was predicted for.
NO_LEVEL = -1
#: Of the time before the first arrival the controller sees so many seconds at most.
IDLE_S = 60.0


class Simulation:
    """One run of one policy over one trace."""

    def __init__(
        self,
        policy: Policy,
        arrivals: Arrivals,
        confidences: np.ndarray,
        *,
        saved: np.ndarray | None = None,
        levels: np.ndarray | None = None,
        seed: int = 0,
        actuation_s: float = 0.0,
        transit_s: Sequence[float] = (),
        deaths: Sequence[tuple[float, int]] = (),
        slowdowns: Sequence[tuple[float, float]] = (),
        fetches: Sequence[tuple[float, float]] = (),
        pairs: np.ndarray | None = None,
    ):
        """
        Args:
            confidences: of the light image of every request.
            pairs: the same for every pair of a policy that has several, [pairs, requests]. Images that are being drawn
                when the pair changes count as of the new one.
            saved: share of the heavy steps that the cache saves each request; 0 is a miss, None: there is no cache.
            levels: predicted for the prompt of each request; None without a classifier.
            actuation_s: seconds from a decision to its effect.
            transit_s: seconds that a call takes to a replica, and its reply back: each way one of these, drawn anew.
            deaths: (time, replica) of replicas that die for good.
            slowdowns: (time, factor) from when on batches take so many times what the profile says. Dispatch knows it
                at once, as the load balancer does after a few replies.
            fetches: (time, seconds) from when on fetching a state takes so long. Workers wait :data:`FETCH_WAIT_S` at
                most, and then draw the whole image. Empty: fetching takes no time, and nobody measures it.
        """
        setting = policy.setting
        self.policy = policy
        self.slo_s = setting.slo_s
        self.arrived: list[float] = arrivals.times_s.tolist()
        every = np.atleast_2d(np.asarray(confidences if pairs is None else pairs, dtype=float))
        self.confidences: list[list[float]] = every.tolist()
        self.latest = [t + self.slo_s - margin_s(self.slo_s) for t in self.arrived]
        n = len(self.arrived)
        self.saved: list[float] = [0.0] * n if saved is None else np.asarray(saved, dtype=float).tolist()
        self.work = [1.0] * n  # share of a whole heavy run that a request needs, known when it arrives
        self.resumed = [False] * n  # its heavy run goes on from a cached state
        self.loss = [0.0] * n  # quality that its heavy run loses for being short
        self.short_runs = {run.steps: run for run in setting.short_runs}
        self.level: list[int] | None = None if levels is None else np.asarray(levels, dtype=int).tolist()
        self.finished = [NEVER] * n
        self.path = [UNANSWERED] * n
        self.deferred = [False] * n
        self.judged_at = [0.0] * n
        self.plan: Plan = policy.first_plan()
        self.pair, self.pair_changes = policy.pair, 0
        self.drawn_by = [self.pair] * n
        self.rules = self.plan.rules
        self.stepwise = setting.stepwise
        work = None if saved is None and not self.short_runs else self.work
        self.fleet = (SeatFleet if setting.stepwise else Fleet)(setting, self.plan, transit_s, work)
        self._use_pair()
        self.transit_s = transit_s
        self.random = random.Random(seed)
        self.actuation_s = actuation_s
        self.admission = Admission(queued=1)  # only its rate limit is asked, so nothing is ever in flight here
        self.plans = [self._plan_row(0.0)]
        self.role_changes = 0
        self.busy_s = 0.0
        # (time, sequence, replica, epoch): a batch ends; or (time, sequence, None, what to do then). The sequence keeps
        # ties in their order.
        self.events: list[tuple[float, int, Replica | None, Any]] = []
        self.sequence = 0
        self.pending_plans: deque[tuple[float, Plan]] = deque()
        self.deaths = deque(sorted(deaths))
        self.slowdowns = deque(sorted(slowdowns))
        self.fetches = deque(sorted(fetches))
        self.fetch_s: float | None = None
        self.tally = Tally(self.arrived, self.slo_s)

    def run(self) -> Outcome:
        """Runs until every request is answered or lost."""
        arrived, events = self.arrived, self.events
        n, i = len(arrived), 0
        tick = max(TICK_S, arrived[0] // TICK_S - IDLE_S) if n else TICK_S
        last = (arrived[-1] if n else 0.0) + EXPIRY * self.slo_s
        while i < n or events:
            at = arrived[i] if i < n else NEVER
            if events and events[0][0] <= at:
                at = events[0][0]
                batch_ends = True
            else:
                batch_ends = False
            if at > tick and tick <= last:
                self._tick(tick, i)
                tick += TICK_S
            elif batch_ends:
                _, _, replica, epoch = heapq.heappop(events)
                if replica is None:
                    epoch(at)
                elif replica.epoch == epoch:
                    self._batch_ended(replica, at)
            else:
                self._arrive(i, at)
                i += 1
        return Outcome(
            policy=self.policy.name,
            slo_s=self.slo_s,
            arrivals_s=np.array(arrived),
            finished_s=np.array(self.finished),
            paths=np.array(self.path, dtype=np.int8),
            resumed=(np.array(self.path, dtype=np.int8) == ANSWERED_HEAVY) & np.array(self.resumed, dtype=bool),
            loss=np.where(np.array(self.path, dtype=np.int8) == ANSWERED_HEAVY, self.loss, 0.0),
            busy_s=self.busy_s,
            role_changes=self.role_changes,
            plans=tuple(self.plans),
            replicas=len(self.fleet.replicas),
        )

    def _arrive(self, i: int, now: float) -> None:
        if self.plan.admitted_rps is not None and not self._admitted(now):
            return
        entry = self.rules.heavy_entry
        role = HEAVY if entry and (entry >= 1 or self.random.random() < entry) else LIGHT
        saved, level = self.saved[i], NO_LEVEL if self.level is None else self.level[i]
        if saved:
            self.tally.found[saved] += 1
        elif level != NO_LEVEL:
            self.tally.missed[level] += 1
        run = self.short_runs.get(self.rules.heavy_steps or 0)
        if not self.rules.reuse or (run is not None and 1 - saved > run.work):
            saved = 0.0
        self.resumed[i], self.work[i] = saved > 0, 1 - saved
        if run is not None and not saved:
            self.work[i], self.loss[i] = run.work, run.loss
        at_once = saved >= (self.rules.direct or 0.0) if saved else NO_LEVEL < level < self.rules.heavy_levels
        if role == LIGHT and at_once and self.fleet.members[HEAVY]:
            replica, finish = self._heavy(i, now)
            if replica is not None and finish <= self.latest[i]:
                self._enqueue(replica, i, now)
                return
        self._send(i, role, now)

    def _admitted(self, now: float) -> bool:
        try:
            self.admission.admit(1, now=now, deadline=NEVER, finish_at=now, rps=self.plan.admitted_rps)
        except Overloaded:
            return False
        self.admission.release(1)
        return True

    def _pick(self, role: int, now: float) -> tuple[Replica | None, float]:
        fleet = self.fleet
        if not fleet.members[role]:
            role = 1 - role  # every replica holds both variants: while a role has none, the other stands in
        if self.rules.replica_choice is ReplicaChoice.EARLIEST_FINISH:
            return fleet.earliest(role, now)
        members = fleet.members[role]
        return (fleet.replicas[members[int(self.random.random() * len(members))]], now) if members else (None, NEVER)

    def _heavy(self, i: int, now: float) -> tuple[Replica | None, float]:
        """Where the heavy image would be drawn, and when it would be ready: the book counts whole runs."""
        replica, finish = self._pick(HEAVY, now)
        if replica is not None:
            finish -= (1 - self.work[i]) * self.fleet.own_s(replica)
        return replica, finish

    def _send(self, i: int, role: int, now: float) -> None:
        replica, _ = self._pick(role, now)
        if replica is not None:
            self._enqueue(replica, i, now)

    def _enqueue(self, replica: Replica, i: int, now: float) -> None:
        wait_s = self._fetched(i, now) if replica.role == HEAVY and self.resumed[i] else 0.0
        if self.transit_s or wait_s:
            replica.coming += 1
            self.fleet.refresh(replica)
            way_s = self._way() if self.transit_s else 0.0
            self._later(now + way_s + wait_s, partial(self._reach, replica, replica.role, i))
        else:
            self._join(replica, i, now)

    def _fetched(self, i: int, now: float) -> float:
        """Seconds that the worker waits for the state of a request; one that does not come saves nothing."""
        while self.fetches and self.fetches[0][0] <= now:
            self.fetch_s = self.fetches.popleft()[1]
        if self.fetch_s is None:
            return 0.0
        wait_s = min(self.fetch_s, FETCH_WAIT_S)
        self.tally.fetches.append(wait_s)
        if self.fetch_s > FETCH_WAIT_S:
            self.resumed[i], self.work[i] = False, 1.0
        else:
            self.tally.reused[self.saved[i]] += 1
        return wait_s

    def _reach(self, replica: Replica, role: int, i: int, now: float) -> None:
        """A call arrives at a replica; one that changed its role meanwhile, or died, sends it on."""
        replica.coming -= 1
        if replica.alive and replica.role == role:
            self._join(replica, i, now)
            return
        self.fleet.refresh(replica)
        self._send_on(i, role, now)

    def _join(self, replica: Replica, i: int, now: float) -> None:
        replica.queue.append(i)
        if replica.running and not (self.stepwise and len(replica.running) < replica.limit):
            self.fleet.refresh(replica)
        else:
            self._start(replica, now)

    def _way(self) -> float:
        return self.random.choice(self.transit_s)

    def _later(self, at: float, do: Callable[[float], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (at, self.sequence, None, do))

    def _start(self, replica: Replica, now: float) -> None:
        """The head of the queue becomes the running batch, after what is too late for it has left."""
        if self.stepwise:
            self._seat(replica, now)
            return
        role, queue = replica.role, replica.queue
        times = replica.times[role]
        if role == HEAVY and self.rules.light_fallback:
            while queue and now + times[1] * self.work[queue[0]] > self.latest[queue[0]]:
                self._give_up(queue.popleft(), now)
        bound = self.rules.drop_after_s
        if bound is None:
            batch = [queue.popleft() for _ in range(min(replica.limit, len(queue)))]
        else:
            seconds = times[min(replica.limit, len(queue))]
            batch = []
            while queue and len(batch) < replica.limit:
                i = queue.popleft()
                if now + seconds - self.arrived[i] > bound:
                    self._give_up(i, now)
                else:
                    batch.append(i)
        if not batch:
            self.fleet.became_idle(replica)
            return
        seconds = self._batch_s(times, role, batch)
        if role == HEAVY and self.rules.light_fallback:
            late = [i for i in batch if not self.deferred[i] and now + seconds > self.latest[i]]
            if late and self.fleet.members[LIGHT]:
                for i in late:
                    self._give_up(i, now)
                replica.queue.extendleft(i for i in reversed(batch) if i not in late)
                self._start(replica, now)
                return
        replica.running, replica.running_role = batch, role
        replica.batch_s, replica.busy_until = seconds, now + seconds
        self.busy_s += seconds
        self.sequence += 1
        heapq.heappush(self.events, (replica.busy_until, self.sequence, replica, replica.epoch))
        self.fleet.refresh(replica)

    def _batch_s(self, times: list[float], role: int, batch: list[int]) -> float:
        """Seconds of a batch. Of heavy runs images leave when they are finished, and others join."""
        share = sum(self.work[i] for i in batch) / len(batch) if role == HEAVY else 1.0
        return share * times[len(batch)]

    def _seat(self, replica: Replica, now: float) -> None:
        """The head of the queue takes the free seats, after what is too late for it has left."""
        self.busy_s += advance(replica, now)
        role, queue, bound = replica.role, replica.queue, self.rules.drop_after_s
        if not replica.running:
            replica.running_role = role
        times = replica.times[role]
        while queue and len(replica.running) < replica.limit and replica.running_role == role:
            i = queue.popleft()
            work = self.work[i] if role == HEAVY else 1.0
            hopeless = role == HEAVY and self.rules.light_fallback and now + work * times[1] > self.latest[i]
            if hopeless or (bound is not None and now + times[len(replica.running) + 1] - self.arrived[i] > bound):
                self._give_up(i, now)
            else:
                replica.running.append(i)
                replica.left.append(work)
        self.fleet.refresh(replica)
        if replica.running:
            replica.epoch += 1
            replica.batch_s = replica.times[replica.running_role][len(replica.running)]
            replica.busy_until = now + max(0.0, min(replica.left)) * replica.batch_s
            self.sequence += 1
            heapq.heappush(self.events, (replica.busy_until, self.sequence, replica, replica.epoch))

    def _batch_ended(self, replica: Replica, now: float) -> None:
        """A batch is done, or those whose steps are: the replica goes on, and the images go out."""
        role, size = replica.running_role, len(replica.running)
        if self.stepwise:
            self.busy_s += advance(replica, now)
            batch = leavers(replica)
            replica.epoch += 1
        else:
            batch, replica.running = replica.running, []
        if self.stepwise or role == LIGHT or not any(self.resumed[i] for i in batch):
            share = 1.0 if self.stepwise or role == LIGHT else sum(self.work[i] for i in batch) / len(batch)
            self.tally.batches.append(Batch(ROLE_NAMES[role], size, replica.batch_s / share, replica.kind))
        if self.transit_s:
            self._later(now + self._way(), partial(self._replied, role, batch))
        else:
            self._replied(role, batch, now)
        if self.stepwise or not replica.running:  # a deferred image may have started the next batch here already
            self._start(replica, now)

    def _replied(self, role: int, batch: list[int], now: float) -> None:
        """The images of a batch are there."""
        if role == LIGHT:
            self._judge(batch, now)
            return
        for i in batch:
            if now > self.latest[i] and self.deferred[i] and self.rules.light_fallback:
                self._give_up(i, now)
            else:
                self._answer(i, ANSWERED_HEAVY, now)

    def _judge(self, batch: list[int], now: float) -> None:
        """The discriminator's verdict on a batch of light images."""
        threshold = self.plan.threshold
        cascade = bool(self.fleet.members[HEAVY])
        for i in batch:
            confidence = self.confidences[self.pair][i]
            self.tally.judged(confidence, NO_LEVEL if self.level is None else self.level[i])
            if not cascade or (confidence >= threshold and threshold < 1):
                self._answer(i, ANSWERED_LIGHT, now)
                continue
            self.tally.deferred += 1
            if not self.deferred[i]:
                self.deferred[i] = True
                self.judged_at[i] = now
                self.tally.deferred_first(i)
            self._defer(i, now)

    def _defer(self, i: int, now: float) -> None:
        replica, finish = self._heavy(i, now)
        if replica is None or (self.rules.light_fallback and finish > self.latest[i]):
            self._give_up(i, now)
        else:
            self._enqueue(replica, i, now)

    def _give_up(self, i: int, now: float) -> None:
        """The request cannot be answered in time by the variant that it waits for: its light image goes out, at the
        latest time for it if that has passed (the load balancer waits no longer), or it is lost."""
        if not self.rules.light_fallback:
            return
        if self.deferred[i]:
            self._answer(i, ANSWERED_AT_DEADLINE, max(self.judged_at[i], min(now, self.latest[i])))
        elif self.fleet.members[LIGHT]:
            self._send(i, LIGHT, now)

    def _answer(self, i: int, path: int, now: float) -> None:
        self.finished[i] = now
        self.path[i] = path
        self.drawn_by[i] = self.pair
        self.tally.answered(i, self.deferred[i])

    def _tick(self, now: float, arrived: int) -> None:
        """One second of the controller: deaths, observation, and the plans whose time has come."""
        while self.deaths and self.deaths[0][0] <= now:
            self._die(self.fleet.replicas[self.deaths.popleft()[1]], now)
        while self.slowdowns and self.slowdowns[0][0] <= now:
            self.fleet.slow_down(self.slowdowns.popleft()[1])
            self.fleet.set_plan(self.plan)
        self.tally.expire(now, arrived, self.finished, self.deferred)
        alive = [r for r in self.fleet.replicas if r.alive]
        queued = [0, 0]
        for replica in alive:
            queued[replica.role] += len(replica.queue)
        counts = [0] * len(self.policy.setting.gpus)
        for replica in alive:
            counts[replica.kind] += 1
        seen = self.tally.look(now, arrived, tuple(counts), {Role.LIGHT: queued[LIGHT], Role.HEAVY: queued[HEAVY]})
        if alive:
            plan = self.policy.observe(seen)
            if plan is not None:
                self.pending_plans.append((now + self.actuation_s, plan))
        while self.pending_plans and self.pending_plans[0][0] <= now:
            self._apply(self.pending_plans.popleft()[1], now)

    def _apply(self, plan: Plan, now: float) -> None:
        self.plan, self.rules = plan, plan.rules
        if self.policy.pair != self.pair:
            self.pair_changes += 1
            self._use_pair()
        changed = self.fleet.set_plan(plan)
        if self.stepwise:  # there may be more seats
            for replica in self.fleet.replicas:
                if replica.alive and replica.queue and replica not in changed:
                    self._seat(replica, now)
        self.role_changes += len(changed)
        self.plans.append(self._plan_row(now))
        if self.rules.dispatch_again:
            for replica in changed:
                self._dispatch_again(replica, 1 - replica.role, now)

    def _use_pair(self) -> None:
        """Light images are of the policy's pair from now on."""
        self.pair = self.policy.pair
        settings = getattr(self.policy, "settings", None)
        if settings is not None:
            self.fleet.use_light(settings[self.pair])

    def _dispatch_again(self, replica: Replica, role: int, now: float) -> None:
        waiting = list(replica.queue)
        replica.queue.clear()
        self.fleet.refresh(replica)
        for i in waiting:
            self._send_on(i, role, now)

    def _send_on(self, i: int, role: int, now: float) -> None:
        if self.deferred[i]:
            self._defer(i, now)
        else:
            self._send(i, role, now)

    def _die(self, replica: Replica, now: float) -> None:
        """What ran or waited there starts again elsewhere."""
        role = replica.running_role if replica.running else replica.role
        replica.queue.extendleft(reversed(replica.running))
        replica.running, replica.left = [], []
        replica.alive = False
        replica.epoch += 1
        self.fleet.set_plan(self.plan)
        self._dispatch_again(replica, role, now)

    def _plan_row(self, now: float) -> tuple[float, int, int, float]:
        return (now, self.plan.count(Role.LIGHT), self.plan.count(Role.HEAVY), self.plan.threshold)


def simulate(
    policy: Policy,
    arrivals: Arrivals,
    confidences: np.ndarray,
    *,
    saved: np.ndarray | None = None,
    levels: np.ndarray | None = None,
    seed: int = 0,
    actuation_s: float = 0.0,
    transit_s: Sequence[float] = (),
    deaths: Sequence[tuple[float, int]] = (),
    slowdowns: Sequence[tuple[float, float]] = (),
    fetches: Sequence[tuple[float, float]] = (),
) -> Outcome:
    """One policy over one trace; see :class:`Simulation`."""
    simulation = Simulation(
        policy,
        arrivals,
        confidences,
        saved=saved,
        levels=levels,
        seed=seed,
        actuation_s=actuation_s,
        transit_s=transit_s,
        deaths=deaths,
        slowdowns=slowdowns,
        fetches=fetches,
    )
    return simulation.run()
