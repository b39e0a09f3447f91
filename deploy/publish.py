"""Deploys configurations and plans: one PUT of the whole configuration, then polling until its plan is applied."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from deploy.cause import cause, reason
from deploy.serve_config import APPLICATION, POOL, deployed, followed_version, with_plan
from weir.errors import NotReady
from weir.plan import Plan
from weir.proxies import DIRECT

log = logging.getLogger(__name__)

POLL_S = 0.2
#: Time limit of the first configuration, which also starts Ray Serve: slow on a busy machine.
START_TIMEOUT_S = 120.0


def is_applied(details: dict[str, Any], plan: Plan) -> bool:
    """Whether the details of ``GET`` show a running application that has applied the plan or a newer one.

    Raises:
        NotReady: the application failed to deploy; the message is Serve's.
    """
    application = details.get("applications", {}).get(APPLICATION)
    if application is None:
        return False
    deployments = application["deployments"]
    if application["status"] == "DEPLOY_FAILED":
        log.error("%s", "\n".join([application["message"], *(it["message"] for it in deployments.values())]))
        failed = {name: it["message"] for name, it in deployments.items() if it["message"]}
        # The one whose constructor raised is the cause; others may only have been waiting.
        for name in sorted(failed, key=lambda name: "Traceback" not in failed[name]):
            raise NotReady(f"{name} failed: {cause(failed[name])}")
        raise NotReady(cause(application["message"]))
    if application["status"] != "RUNNING":
        return False
    pool = deployments.get(POOL, {})
    running = sum(it["state"] == "RUNNING" for it in pool.get("replicas", ()))
    given = followed_version(pool.get("deployment_config", {}).get("user_config"), plan)
    return given >= plan.version and running == len(plan.assignments)


def pending(details: dict[str, Any], plan: Plan) -> str:
    """What the application still waits for, as a noun phrase for people."""
    application = details.get("applications", {}).get(APPLICATION, {})
    deployments = application.get("deployments", {})
    if not deployments:
        return "Ray Serve to build the application"
    running = sum(it["state"] == "RUNNING" for it in deployments.get(POOL, {}).get("replicas", ()))
    if running < len(plan.assignments):
        return f"replicas to load their models: {running} of {len(plan.assignments)} run"
    others = (name for name, it in deployments.items() if name != POOL and it.get("status") != "HEALTHY")
    return ", ".join(others) or "Ray Serve to report the application as running"


class _Client(ServeSubmissionClient):
    """Ray's client with a time limit, without which it would wait for a hanging dashboard for ever. Uses no proxy."""

    def __init__(self, dashboard: str, timeout_s: float):
        self._timeout_s = timeout_s
        super().__init__(dashboard)

    def _do_request(self, *args: Any, **kwargs: Any) -> requests.Response:
        return super()._do_request(*args, **{"timeout": self._timeout_s, "proxies": DIRECT, **kwargs})


class Publisher:
    """Writes the configuration of the cluster.

    Args:
        dashboard: HTTP address of the Ray dashboard. If the cluster has a token, each call sends it.
        timeout_s: a call without an answer fails after this time.
    """

    def __init__(self, dashboard: str, timeout_s: float = START_TIMEOUT_S):
        self._dashboard = dashboard
        with self._translating("connect"):
            self._client = _Client(dashboard, timeout_s)

    def put(self, body: dict[str, Any]) -> None:
        """Sends the configuration; returns before it is applied.

        Raises:
            NotReady: the dashboard does not answer, or refuses the configuration.
        """
        with self._translating("accept the configuration"):
            self._client.deploy_applications(body)

    def actuate(self, plan: Plan) -> None:
        """Replaces the deployed plan; the rest of the deployed configuration stays unchanged.

        Raises:
            NotReady: the dashboard does not answer or refuses the plan, or Weir is not deployed.
            PlanError: the deployed plan is as new as this one or newer.
        """
        self.put(with_plan(deployed(self.details()), plan))

    def details(self) -> dict[str, Any]:
        """Ray Serve's details of all applications.

        Raises:
            NotReady: the dashboard does not answer.
        """
        with self._translating("list the applications"):
            return self._client.get_serve_details()

    def wait_applied(
        self,
        plan: Plan,
        *,
        timeout_s: float,
        stopped: Callable[[], bool] = lambda: False,
        report: Callable[[str], None] = lambda pending: None,
    ) -> None:
        """Polls until the plan is applied, or until ``stopped`` returns True.

        Args:
            report: called with what is still pending, after each poll.

        Raises:
            NotReady: the application failed to deploy, or applying the plan took longer than ``timeout_s``.
        """
        end = time.monotonic() + timeout_s
        while not stopped():
            details = self.details()
            if is_applied(details, plan):
                return
            report(pending(details, plan))
            if time.monotonic() > end:
                raise NotReady(f"plan {plan.version} was not applied within {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def delete(self) -> None:
        """Deletes all applications of the cluster.

        Raises:
            NotReady: the dashboard does not answer, or refuses the deletion.
        """
        with self._translating("delete the applications"):
            self._client.delete_applications()

    @contextmanager
    def _translating(self, action: str) -> Iterator[None]:
        """Translates failures of Ray's client to `NotReady`."""
        try:
            yield
        except (RuntimeError, ConnectionError, requests.RequestException) as error:  # all that the client raises
            raise NotReady(
                f"the Ray dashboard at {self._dashboard} did not {action}: {reason(error)}; "
                "the logs of the cluster have details, and trying again is safe"
            ) from error
