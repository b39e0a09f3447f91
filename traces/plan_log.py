"""Which plan was in force when, as a replay saw it: polled from the service once a second, kept beside its outcomes."""

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

#: In the folder of a replay.
PLANS = "plans.json"
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class PlanSeen:
    """A plan, from when the replay first saw it in force.

    Attributes:
        at_s: since the start of the replay.
        roles: replicas by role.
        thresholds: of the judges in use.
        reason: why it was made, in the controller's words; "" where nobody said.
    """

    at_s: float
    version: int
    roles: dict[str, int]
    thresholds: tuple[float, ...]
    reason: str = ""

    @classmethod
    def of(cls, live: Mapping[str, Any], at_s: float) -> PlanSeen:
        """From what ``GET /v1/live`` answers.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        roles = {str(role): int(counts["planned"]) for role, counts in live["roles"].items()}
        thresholds = tuple(float(threshold) for threshold in live["thresholds"])
        return cls(at_s, int(live["plan_version"]), roles, thresholds, str(live.get("reason", "")))


@dataclass(slots=True)
class PlanLog:
    """The plans that a replay saw, in order. A service that does not say which plan it follows leaves it empty."""

    seen: list[PlanSeen] = field(default_factory=list)

    async def follow(self, http: httpx.AsyncClient, url: str, start: float) -> None:
        """Polls ``url`` until it is cancelled. Never raises: what cannot be read is left out.

        Args:
            start: of the replay, on the event loop's clock.
        """
        clock = asyncio.get_running_loop().time
        while True:
            with suppress(httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
                answer = await http.get(url, timeout=5 * POLL_S)
                found = PlanSeen.of(answer.raise_for_status().json(), max(0.0, clock() - start))
                if not self.seen or self.seen[-1].version != found.version:
                    self.seen.append(found)
            await asyncio.sleep(POLL_S)

    def save(self, folder: Path) -> None:
        """Writes the file whole or not at all."""
        with written_whole(folder / PLANS) as draft:
            draft.write_text(json.dumps([asdict(it) for it in self.seen], indent=1), encoding="utf-8")


def read_plans(folder: Path) -> list[PlanSeen]:
    """The plans that a replay saw; empty where it kept none.

    Raises:
        ConfigError: the file is something else.
    """
    path = folder / PLANS
    if not path.exists():
        return []
    try:
        return [PlanSeen(**{**it, "thresholds": tuple(it["thresholds"])}) for it in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: not the plans of a replay: {error}; replay once more") from None


def turning_points(plans: Sequence[PlanSeen]) -> list[PlanSeen]:
    """The plans that gave replicas other roles than the plan before, the first one included."""
    return [it for i, it in enumerate(plans) if i == 0 or it.roles != plans[i - 1].roles]
