"""How long a batch takes: the profile, corrected by what the workers report."""

from __future__ import annotations

from collections.abc import Mapping

from weir.core import LatencyProfile, Role
from weir.profiles import Profile

#: Weight of a new observation. Small enough that one slow batch does not turn traffic away.
LEARNING_RATE = 0.2
#: Seconds without a batch after which a slow past is forgiven.
MEMORY_S = 30.0
#: A correction beyond this says more about a broken clock than about a device.
MOST_CORRECTION = 100.0


class ServiceTimes:
    """Predicted seconds of a batch, by role.

    Without a profile nothing is known until the first reply: the prediction is 0 s, which admits everything, and from
    then on a batch costs in proportion to its size what the last replies cost.

    A variant that is predicted too slow for the deadline gets no image that could show that it is not. So what was
    learned of a stall is forgotten when no batch has come for a while, and the next image tries again.

    Args:
        lights: profiles of further light variants, by name.
    """

    def __init__(self, profile: Profile | None = None, lights: Mapping[str, Profile] | None = None):
        self._measured = profile is not None
        self.stepwise = profile is not None and profile.stepwise
        self._fixed_s: dict[Role, float] = {role: profile.variant(role).fixed_s if profile else 0.0 for role in Role}
        self._curves: dict[Role, LatencyProfile] = {
            role: profile.variant(role).latency if profile else LatencyProfile((1,), (1.0,)) for role in Role
        }
        self._prior = 1.0 if profile else 0.0
        self._correction: dict[Role, float] = dict.fromkeys(Role, self._prior)
        self._heard_at: dict[Role, float] = dict.fromkeys(Role, 0.0)
        self._tables: dict[Role, list[float]] = {role: [0.0] for role in Role}
        self._own = self._light = profile
        self._lights = lights or {}

    def use_light(self, name: str | None) -> None:
        """Light batches are of this variant from now on, of the family's own where the name is not known; what was
        learned of the other one is of no use for it."""
        profile = self._lights.get(name or "") or self._own
        if profile is None or profile is self._light:
            return
        self._light = profile
        self._curves[Role.LIGHT], self._fixed_s[Role.LIGHT] = profile.light.latency, profile.light.fixed_s
        self._tables[Role.LIGHT], self._correction[Role.LIGHT] = [0.0], self._prior

    def seconds(self, role: Role, batch_size: int, work: float = 1.0) -> float:
        """Predicted seconds of one batch; ``work`` is its share of the variant's own number of steps.

        Where steps were measured, what an image costs beside them is not scaled by its work.
        """
        return self._profiled(role, batch_size, work) * self._correction[role]

    def whole(self, role: Role, batch_size: int, compute_s: float, work: float) -> float:
        """What a batch of the variant's own number of steps would have taken, from one of another."""
        known = self._profiled(role, batch_size, work)
        return compute_s * self._profiled(role, batch_size, 1.0) / known if known > 0 else compute_s

    def observe(self, role: Role, batch_size: int, compute_s: float, work: float = 1.0, *, now: float) -> None:
        """Takes in the time that a batch really took."""
        self._heard_at[role] = now
        expected = self._profiled(role, batch_size, work)
        if expected <= 0 or compute_s < 0:
            return
        ratio = min(compute_s / expected, MOST_CORRECTION)
        known = self._correction[role]
        first = known == 0.0 and not self._measured
        self._correction[role] = ratio if first else known + LEARNING_RATE * (ratio - known)

    def forgive(self, now: float) -> None:
        """Corrections to the worse that no batch has confirmed for :data:`MEMORY_S` are dropped."""
        for role, heard_at in self._heard_at.items():
            if now - heard_at > MEMORY_S:
                self._correction[role] = min(self._correction[role], self._prior)

    def _profiled(self, role: Role, batch_size: int, work: float) -> float:
        table = self._tables[role]
        while len(table) <= batch_size:
            table.append(self._curves[role].at(len(table)))
        whole = table[batch_size]
        fixed = min(whole, batch_size * self._fixed_s[role])
        return fixed + (whole - fixed) * work
