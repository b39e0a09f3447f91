"""The plans in force during a replay, polled from the service once a second and saved with its outcomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from weir.errors import ConfigError
from weir.files import written_whole
from weir.json_files import read_json

#: Name of the file in the folder of a replay.
PLANS = "plans.json"
POLL_S = 1.0
#: Thresholds that differ by this much make another plan of it; smaller moves follow the confidences.
FAR = 0.25


@dataclass(frozen=True, slots=True)
class ObservedPlan:
    """A plan, with the time when the replay first observed it.

    Attributes:
        at_s: time since the start of the replay.
        roles: number of replicas by role.
        thresholds: thresholds of the judges in use.
        reason: the controller's reason for the plan; "" if it gave none.
    """

    at_s: float
    version: int
    roles: dict[str, int]
    thresholds: tuple[float, ...]
    reason: str = ""

    @classmethod
    def of(cls, live: Mapping[str, Any], at_s: float) -> ObservedPlan:
        """The plan in a response of ``GET /v1/live``.

        Raises:
            KeyError, TypeError, ValueError: the response is not of that form.
        """
        roles = {str(role): int(counts["planned"]) for role, counts in live["roles"].items()}
        thresholds = tuple(float(threshold) for threshold in live["thresholds"])
        return cls(at_s, int(live["plan_version"]), roles, thresholds, str(live.get("reason", "")))


@dataclass(slots=True)
class PlanLog:
    """The plans that a replay observed, in order; empty if the service does not report its plan."""

    plans: list[ObservedPlan] = field(default_factory=list)

    async def follow(self, http: httpx.AsyncClient, url: str, start: float) -> None:
        """Polls ``url`` until it is cancelled. Skips responses that cannot be read.

        Args:
            start: start of the replay, on the event loop's clock.
        """
        clock = asyncio.get_running_loop().time
        while True:
            with suppress(httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
                answer = await http.get(url, timeout=5 * POLL_S)
                found = ObservedPlan.of(answer.raise_for_status().json(), max(0.0, clock() - start))
                if not self.plans or self.plans[-1].version != found.version:
                    self.plans.append(found)
            await asyncio.sleep(POLL_S)

    def save(self, folder: Path) -> None:
        """Writes the file atomically."""
        with written_whole(folder / PLANS) as draft:
            draft.write_text(json.dumps([asdict(it) for it in self.plans], indent=1), encoding="utf-8")


def read_plans(folder: Path) -> list[ObservedPlan]:
    """Reads the plans that a replay observed; empty without a file.

    Raises:
        ConfigError: the file is not of that form.
    """
    path = folder / PLANS
    if not path.exists():
        return []
    try:
        return [ObservedPlan(**{**it, "thresholds": tuple(it["thresholds"])}) for it in read_json(path)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: not the plans of a replay: {error}; replay again") from None


def main_plans(plans: Sequence[ObservedPlan]) -> list[ObservedPlan]:
    """The first plan, and those with other roles, or a threshold far from the one of the last main plan."""
    found: list[ObservedPlan] = []
    for plan in plans:
        if not found or plan.roles != found[-1].roles or _far(plan.thresholds, found[-1].thresholds):
            found.append(plan)
    return found


def _far(thresholds: Sequence[float], others: Sequence[float]) -> bool:
    if len(thresholds) != len(others):
        return True
    return any(abs(a - b) >= FAR for a, b in zip(thresholds, others, strict=True))
