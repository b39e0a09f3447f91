"""The controller behind a Serve deployment handle."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from weir.errors import InvalidRequest, NotReady

#: Time limit of a check, seconds: the controller makes the policy and its first plan.
CHECK_S = 30.0


class ServeController:
    """A :class:`~load_balancer.admin_controls.ControllerClient` for ``deploy.control.ControlLoop``.

    Args:
        deployment, application: its names; it belongs to another application than the load balancer.
    """

    def __init__(self, deployment: str, application: str):
        self._handle: DeploymentHandle[Any] = DeploymentHandle(deployment, application)

    async def check_policy(self, name: str) -> None:
        try:
            refusal = await asyncio.wait_for(self._call(name), CHECK_S)
        except (TimeoutError, RayError, RayServeException) as error:
            raise NotReady(f"the controller does not answer: {type(error).__name__}; try again") from error
        if refusal:
            raise InvalidRequest(refusal, param="policy")

    async def _call(self, name: str) -> str:
        # In an empty context, as in serve_pool.py.
        answer: Any = await contextvars.Context().run(self._handle.check_policy.remote, name)
        return str(answer)
