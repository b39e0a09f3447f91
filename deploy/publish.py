"""Deploys and actuates: one declarative PUT of the whole configuration, read back until its plan is applied."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from deploy.serve_config import APPLICATION, POOL, deployed, with_plan
from weir.core import Plan
from weir.errors import NotReady
from weir.proxies import DIRECT

POLL_S = 0.2
#: The first configuration starts Serve itself, which takes its time on a busy machine.
START_TIMEOUT_S = 120.0


def is_applied(details: dict[str, Any], plan: Plan) -> bool:
    """Whether what ``GET`` answers is a running application that has taken the plan, or a newer one, in.

    Raises:
        NotReady: the application failed to deploy; the message is Serve's.
    """
    application = details.get("applications", {}).get(APPLICATION)
    if application is None:
        return False
    if application["status"] == "DEPLOY_FAILED":
        problems = [f"{name}: {it['message']}" for name, it in application["deployments"].items() if it["message"]]
        raise NotReady("\n".join([application["message"], *problems]).strip())
    if application["status"] != "RUNNING":
        return False
    pool = application["deployments"].get(POOL, {})
    running = sum(it["state"] == "RUNNING" for it in pool.get("replicas", ()))
    given = pool.get("deployment_config", {}).get("user_config") or {}
    return given.get("version", 0) >= plan.version and running == len(plan.assignments)


class _Client(ServeSubmissionClient):
    """Ray's client, which by itself waits for a hanging dashboard for ever, and asks for it at a proxy."""

    def __init__(self, dashboard: str, timeout_s: float):
        self._timeout_s = timeout_s
        super().__init__(dashboard)

    def _do_request(self, *args: Any, **kwargs: Any) -> requests.Response:
        return super()._do_request(*args, **{"timeout": self._timeout_s, "proxies": DIRECT, **kwargs})


class Publisher:
    """Writes the configuration of the cluster.

    Args:
        dashboard: http address of the Ray dashboard. Ray's token, where the cluster has one, is sent along.
        timeout_s: a call that is not answered by then has failed.
    """

    def __init__(self, dashboard: str, timeout_s: float = START_TIMEOUT_S):
        self._dashboard = dashboard
        with self._typed("connect"):
            self._client = _Client(dashboard, timeout_s)

    def put(self, body: dict[str, Any]) -> None:
        """Sends the configuration; returns before it is applied.

        Raises:
            NotReady: the dashboard does not answer, or refuses it.
        """
        with self._typed("take the configuration"):
            self._client.deploy_applications(body)

    def actuate(self, plan: Plan) -> None:
        """Puts a plan in the place of the one that is deployed; everything else of the configuration stays.

        Raises:
            NotReady: the dashboard does not answer or refuses it, or nothing of ours is deployed.
            PlanError: a plan as new as this one is deployed.
        """
        self.put(with_plan(deployed(self.details()), plan))

    def details(self) -> dict[str, Any]:
        """What Serve says of all applications.

        Raises:
            NotReady: the dashboard does not answer.
        """
        with self._typed("say what runs"):
            return self._client.get_serve_details()

    def wait_applied(self, plan: Plan, *, timeout_s: float, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads back until the plan is applied, or ``stopped`` says to give up.

        Raises:
            NotReady: the application failed to deploy, or it took longer than ``timeout_s``.
        """
        end = time.monotonic() + timeout_s
        while not stopped():
            if is_applied(self.details(), plan):
                return
            if time.monotonic() > end:
                raise NotReady(f"plan {plan.version} was not applied within {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def delete(self) -> None:
        """Takes every application off the cluster.

        Raises:
            NotReady: the dashboard does not answer, or refuses.
        """
        with self._typed("delete the applications"):
            self._client.delete_applications()

    @contextmanager
    def _typed(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ConnectionError, requests.RequestException) as error:  # all that the client raises
            raise NotReady(
                f"the Ray dashboard at {self._dashboard} did not {what}: {reason(error)}; "
                "the logs of the cluster say more, and another try is safe"
            ) from error


def reason(error: Exception) -> str:
    """What went wrong, in one line: Ray answers with whole tracebacks, whose last line says it."""
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip(' "}.')]
    return lines[-1].rstrip('"}. ') if lines else type(error).__name__
