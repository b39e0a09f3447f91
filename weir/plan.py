"""The plan: what every replica of the pool does, and by which rules requests are routed, until the next plan.

A family is a *ladder*: variants from the fastest to the best, each but the last followed by a judge. A plan uses a
*chain* of them, with a threshold for each judge in use, and gives every replica a *role*: the group of requests that
are dispatched to it. In a cascade the roles are the variants of the chain. Policies that assign approximation levels
(AccuScale/Argus, Middleware 2025) have one role for each level instead, and deal requests to levels by class of prompts
(:class:`LevelRouting`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from itertools import accumulate
from typing import Any

from weir.errors import PlanError

#: Keys of the variants in a ladder of two.
LIGHT, HEAVY = "light", "heavy"
#: Origin of a plan that contains an operator's pin; see :mod:`weir.pin`.
PINNED = "pin"
#: Largest whole number in a plan: JSON readers agree on numbers up to it.
MOST = 2**53
#: A plan that is further ahead of the one in force is a mistake. One plan a second needs 136 years for as many, so that
#: whatever plan is in force, there is always a next one.
MOST_AHEAD = 2**32


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MOST if isinstance(value, int) else math.isfinite(value)


def _whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST


def is_version(value: Any) -> bool:
    """Whether a value can be the version of a plan."""
    return _whole(value)


class ReplicaChoice(StrEnum):
    """Which replica of the role gets a request."""

    EARLIEST_FINISH = "earliest-finish"  #: the one that would have its image ready first
    RANDOM = "random"  #: any, whatever its load


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one replica does: the role whose requests it is sent, and the largest batch it runs."""

    role: str
    batch_size: int


@dataclass(frozen=True, slots=True)
class Level:
    """One way to generate an image.

    Attributes:
        name: unique among the levels of a plan.
        variant: key of the variant in the ladder.
        role: replicas that serve it; several levels may share a role.
        steps: denoising steps of a run from noise; None: the variant's own.
        skipped: K, the denoising step that a run resumes at from the nearest prompt's stored state; 0: from noise.
    """

    name: str
    variant: str
    role: str
    steps: int | None = None
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class LevelRouting:
    """Deals requests to levels at random, with probabilities that depend on the class of the prompt.

    Attributes:
        levels: from the best to the fastest.
        shares: by class of prompts, the probability of every level; the first row also holds for prompts without a
            class.
        hurry: a request that would miss its deadline at its level is served at the best faster one that meets it.
    """

    levels: tuple[Level, ...]
    shares: tuple[tuple[float, ...], ...]
    hurry: bool = False
    cumulative: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.levels:
            raise PlanError("routing.levels is empty; give at least one level")
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise PlanError(f"routing.levels has the names {', '.join(names)}; each level needs its own")
        for level in self.levels:
            if not (_whole(level.skipped) and (level.steps is None or _whole(level.steps, 1))):
                raise PlanError(f"routing: level {level.name} must skip at least 0 steps and run at least 1")
        if not isinstance(self.hurry, bool):
            raise PlanError(f"routing.hurry is {self.hurry!r}; it must be true or false")
        if not self.shares:
            raise PlanError("routing.shares is empty; give one row for each class of prompts")
        for row in self.shares:
            if len(row) != len(self.levels):
                raise PlanError(f"routing.shares has a row of {len(row)} for {len(self.levels)} levels")
            if not all(math.isfinite(share) and share >= 0 for share in row) or abs(sum(row) - 1) > 1e-6:
                raise PlanError("routing.shares: every row must be probabilities that add up to 1")
        object.__setattr__(self, "cumulative", tuple(tuple(accumulate(row)) for row in self.shares))

    def pick(self, prompt_class: int | None, draw: float) -> int:
        """Index of the level for a request.

        Args:
            draw: uniform in [0, 1).
        """
        row = self.cumulative[prompt_class if prompt_class is not None and 0 <= prompt_class < len(self.shares) else 0]
        return min(bisect_right(row, draw), len(row) - 1)


@dataclass(frozen=True, slots=True)
class Rules:
    """How requests are routed, dropped and answered under a plan. The defaults are Weir's; baselines have others.

    Attributes:
        replica_choice: see :class:`ReplicaChoice`.
        heavy_entry: share of requests that enter at the last variant of the chain, drawn at random; the others enter at
            the first.
        drop_after_s: a request whose image cannot be ready this many seconds after its admission is dropped; None
            refuses at admission what cannot be ready in time, and drops nothing.
        light_fallback: a deferred request is answered with the image that it has when the next one would be late.
        dispatch_again: when a replica changes its role, the requests that wait there are dispatched again within their
            role; otherwise the replica generates them in its new role.
        direct: a cache hit that saves at least this share of the steps enters at the last variant; the others enter at
            the first, and resume if they are deferred. None: what the service's cache says.
        heavy_levels: a request without a hit whose prompt class lies below this enters at the last variant; 0: none.
        reuse: False ignores cache hits (there is time for whole runs), except for requests that ask for the cache.
        heavy_steps: denoising steps of the last variant's runs from noise, for requests that neither name a number nor
            a variant; None: the variant's own. A hit that would leave more steps is ignored.
    """

    replica_choice: ReplicaChoice = ReplicaChoice.EARLIEST_FINISH
    heavy_entry: float = 0.0
    drop_after_s: float | None = None
    light_fallback: bool = True
    dispatch_again: bool = True
    direct: float | None = None
    heavy_levels: int = 0
    reuse: bool = True
    heavy_steps: int | None = None

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, accepted: str) -> None:
            if not condition:
                raise PlanError(f"rules.{name} is {getattr(self, name)!r}; it must {accepted}")

        need(_finite(self.heavy_entry) and 0 <= self.heavy_entry <= 1, "heavy_entry", "lie in 0…1")
        drop = self.drop_after_s
        need(drop is None or (_finite(drop) and drop > 0), "drop_after_s", "be above 0")
        for name in ("light_fallback", "dispatch_again", "reuse"):
            need(isinstance(getattr(self, name), bool), name, "be true or false")
        need(self.direct is None or (_finite(self.direct) and 0 <= self.direct <= 1), "direct", "lie in 0…1")
        need(_whole(self.heavy_levels), "heavy_levels", "be a whole number of at least 0")
        steps = self.heavy_steps
        need(steps is None or _whole(steps, 1), "heavy_steps", "be a whole number of at least 1")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the whole system does until the next plan. It travels as ``user_config`` and is checked where it arrives.

    Attributes:
        version: grows with every plan; consumers ignore one that is not newer than theirs.
        assignments: by rank in the pool. A rank beyond the end takes the last assignment.
        chain: variants of the cascade in use, from the fastest to the best.
        thresholds: one for each variant of the chain but the last, 0…1. An image whose confidence lies below it is
            deferred to the next variant: 0 defers nothing, 1 everything.
        admitted_rps: requests per second to admit; None admits all.
        routing: deals requests to approximation levels instead of sending them through the chain.
        reason: why the plan is what it is, in words for a log or a report; plans that differ in it alone are equal.
        origin: name of the policy that made the plan, :data:`PINNED`, or "" for the plan of the configuration; plans
            that differ in it alone are equal.
    """

    version: int
    assignments: tuple[Assignment, ...]
    thresholds: tuple[float, ...] = (0.0,)
    chain: tuple[str, ...] = (LIGHT, HEAVY)
    admitted_rps: float | None = None
    rules: Rules = Rules()
    routing: LevelRouting | None = None
    reason: str = field(default="", compare=False)
    origin: str = field(default="", compare=False)
    counts: Mapping[str, int] = field(init=False, repr=False, compare=False)  #: replicas by role
    first: str = field(init=False, repr=False, compare=False)  #: the first variant of the chain
    #: The last variant of the chain, whose images nobody defers and whose states are cached.
    last: str = field(init=False, repr=False, compare=False)
    #: The first variant of the chain that some replica serves; the last one where none does.
    entry: str = field(init=False, repr=False, compare=False)
    #: For each variant of the chain, the next one that some replica serves; None behind the last one.
    _following: Mapping[str, str | None] = field(init=False, repr=False, compare=False)
    _threshold_of: Mapping[str, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_version(self.version):
            raise PlanError(f"version is {self.version!r}; it must be a whole number in 0…2^53")
        if not self.assignments:
            raise PlanError("assignments is empty; a plan needs at least one replica")
        if not self.chain or len(set(self.chain)) < len(self.chain):
            raise PlanError(f"chain is {list(self.chain)}; it must name at least one variant, and each once")
        roles = set(self.chain) | ({level.role for level in self.routing.levels} if self.routing else set())
        for rank, a in enumerate(self.assignments):
            if not _whole(a.batch_size, 1):
                raise PlanError(f"assignments[{rank}].batch_size is {a.batch_size!r}; it must be at least 1")
            if a.role not in roles:
                raise PlanError(f"assignments[{rank}].role is {a.role!r}; the plan has {', '.join(sorted(roles))}")
        if len(self.thresholds) != len(self.chain) - 1:
            raise PlanError(
                f"thresholds has {len(self.thresholds)} entries for a chain of {len(self.chain)} variants; "
                f"it must have {len(self.chain) - 1}, one for each judge in use"
            )
        for i, threshold in enumerate(self.thresholds):
            if not (_finite(threshold) and 0 <= threshold <= 1):
                raise PlanError(f"thresholds[{i}] is {threshold!r}; it must lie in 0…1")
        if self.admitted_rps is not None and not (_finite(self.admitted_rps) and self.admitted_rps >= 0):
            raise PlanError(f"admitted_rps is {self.admitted_rps!r}; it must be at least 0")
        object.__setattr__(self, "counts", Counter(a.role for a in self.assignments))
        object.__setattr__(self, "first", self.chain[0])
        object.__setattr__(self, "last", self.chain[-1])
        following: dict[str, str | None] = {}
        served = None
        for variant in reversed(self.chain):
            following[variant] = served
            served = variant if self.count(variant) else served
        object.__setattr__(self, "entry", served or self.last)
        object.__setattr__(self, "_following", following)
        object.__setattr__(self, "_threshold_of", dict(zip(self.chain, self.thresholds, strict=False)))

    @classmethod
    def split(
        cls,
        version: int,
        light: int,
        heavy: int,
        *,
        light_batch: int,
        heavy_batch: int,
        threshold: float,
        chain: tuple[str, str] = (LIGHT, HEAVY),
        admitted_rps: float | None = None,
        rules: Rules = Rules(),
    ) -> Plan:
        """The plan of a chain of two, with ``light`` replicas of the first variant and ``heavy`` of the second."""
        assignments = (Assignment(chain[0], light_batch),) * light + (Assignment(chain[1], heavy_batch),) * heavy
        return cls(version, assignments, (threshold,), chain, admitted_rps, rules)

    # ------------------------------------------------------------------------------------------- what it says

    @property
    def threshold(self) -> float:
        """The first judge's; 0 in a chain of one."""
        return self.thresholds[0] if self.thresholds else 0.0

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that the plan knows: the levels' from the best on where it has some, else those of the chain."""
        if self.routing is not None:
            return tuple(dict.fromkeys(level.role for level in self.routing.levels))
        return self.chain

    def assignment(self, rank: int) -> Assignment:
        """What the replica of this rank does."""
        return self.assignments[min(rank, len(self.assignments) - 1)]

    def count(self, role: str) -> int:
        """Replicas that the plan gives a role."""
        return self.counts.get(role, 0)

    def batch_size(self, role: str) -> int:
        """The largest batch of a role; 1 when no replica has it."""
        return max((a.batch_size for a in self.assignments if a.role == role), default=1)

    def variant_of(self, role: str) -> str:
        """The variant that the replicas of a role run."""
        if self.routing is not None:
            for level in self.routing.levels:
                if level.role == role:
                    return level.variant
        return role

    def next_variant(self, variant: str) -> str | None:
        """The next variant of the chain that some replica serves; None behind the last one."""
        return self._following.get(variant)

    def defers(self, variant: str, confidence: float | None) -> bool:
        """Whether the judge behind a variant defers its image; no confidence counts as 0, and 1 defers everything."""
        threshold = self._threshold_of[variant]
        return threshold >= 1 or (confidence or 0.0) < threshold

    def check(self, variants: Collection[str]) -> Plan:
        """The plan itself, when a pool that holds these variants can follow it.

        Raises:
            PlanError: names the variant or level that no replica holds.
        """
        held = ", ".join(variants)
        for variant in self.chain:
            if variant not in variants:
                raise PlanError(f"chain names the variant {variant!r}; the replicas hold {held}")
        for level in self.routing.levels if self.routing else ():
            if level.variant not in variants:
                raise PlanError(f"level {level.name} is of the variant {level.variant!r}; the replicas hold {held}")
        return self

    def replaces(self, version: int) -> bool:
        """Whether this plan takes the place of one with ``version``: it is newer, and at most :data:`MOST_AHEAD` ahead.

        A consumer that holds a plan far ahead of the others', by whatever mistake, takes the next version after it.
        """
        return 0 < self.version - version <= MOST_AHEAD

    def with_thresholds(self, thresholds: Iterable[float], version: int) -> Plan:
        """The same plan with other thresholds."""
        return replace(self, version=version, thresholds=tuple(thresholds))

    # ------------------------------------------------------------------------------------------------- as JSON

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; :meth:`from_dict` reads it back."""
        routing = None
        if self.routing is not None:
            routing = {
                "levels": [asdict(level) for level in self.routing.levels],
                "shares": [list(row) for row in self.routing.shares],
                "hurry": self.routing.hurry,
            }
        return {
            "version": self.version,
            "assignments": [[a.role, a.batch_size] for a in self.assignments],
            "chain": list(self.chain),
            "thresholds": list(self.thresholds),
            "admitted_rps": self.admitted_rps,
            "rules": asdict(self.rules),
            "routing": routing,
            "reason": self.reason,
            "origin": self.origin,
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Plan:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            PlanError: a key is missing or unknown, or a value is out of range; the message names it.
        """
        if not isinstance(given, Mapping):
            raise PlanError(f"a plan is a mapping, not {type(given).__name__}")
        if "threshold" in given:
            raise PlanError("the key threshold is of an older form; write chain: [light, heavy] and thresholds: [0.5]")
        unknown = set(given) - {it.name for it in fields(cls) if it.init}
        if unknown:
            raise PlanError(f"unknown keys {sorted(map(str, unknown))}")
        try:
            rps = given.get("admitted_rps")
            return cls(
                version=given["version"],
                assignments=tuple(Assignment(str(role), batch) for role, batch in given["assignments"]),
                thresholds=tuple(map(_number, given["thresholds"])),
                chain=tuple(map(str, given["chain"])),
                admitted_rps=None if rps is None else _number(rps),
                rules=_rules(given["rules"]) if given.get("rules") is not None else Rules(),
                routing=None if given.get("routing") is None else _routing(given["routing"]),
                reason=str(given.get("reason", "")),
                origin=str(given.get("origin", "")),
            )
        except KeyError as error:
            raise PlanError(f"the key {error} is missing") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise PlanError(str(error)) from None


def _rules(given: Mapping[str, Any]) -> Rules:
    _known(given, Rules, "rules")
    choice = {"replica_choice": ReplicaChoice(given["replica_choice"])} if "replica_choice" in given else {}
    return Rules(**{**given, **choice})


def _routing(given: Mapping[str, Any]) -> LevelRouting:
    unknown = set(given) - {"levels", "shares", "hurry"}
    if unknown:
        raise PlanError(f"routing: unknown keys {sorted(map(str, unknown))}")
    for level in given["levels"]:
        _known(level, Level, "routing.levels")
    return LevelRouting(
        levels=tuple(Level(**level) for level in given["levels"]),
        shares=tuple(tuple(map(_number, row)) for row in given["shares"]),
        hurry=given.get("hurry", False),
    )


def _known(given: Mapping[str, Any], of: type[Any], where: str) -> None:
    unknown = set(given) - {it.name for it in fields(of)}
    if unknown:
        raise PlanError(f"{where}: unknown keys {sorted(map(str, unknown))}")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{value!r} is not a number")
    if isinstance(value, int) and abs(value) > MOST:
        raise PlanError(f"{str(value)[:20]}… is too large a number")
    return float(value)
