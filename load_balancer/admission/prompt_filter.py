"""The operator's own filter of prompts, which looks at them before anything is generated."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Protocol

from load_balancer.runner.generation_request import GenerationRequest
from weir.errors import Blocked, NotReady
from weir.own_code import made

log = logging.getLogger(__name__)

#: Time limit of a filter, seconds.
FILTER_S = 5.0


class PromptFilter(Protocol):
    """What ``prompt_filter: module:name`` makes."""

    def blocked(self, prompt: str, level: str) -> bool:
        """Whether to block a prompt at the level ``auto`` or ``low``. Unless it is a coroutine, threads call it."""
        ...


class FilteredPrompts:
    """Blocks prompts by the operator's filter. One that fails or hangs lets nothing through.

    Args:
        name: ``module:name`` of the filter; None: no prompt is blocked.

    Raises:
        ConfigError: the filter cannot be made.
    """

    def __init__(self, name: str | None):
        self._filter: PromptFilter | None = None if name is None else made(name, "prompt_filter", has=("blocked",))

    async def check(self, request: GenerationRequest) -> None:
        """Lets a request through.

        Raises:
            Blocked: the filter blocks its prompt.
            NotReady: the filter failed, or did not answer in time.
        """
        level = request.level
        if self._filter is None or level == "off":
            return
        try:
            async with asyncio.timeout(FILTER_S):
                blocked = await self._blocked(request.prompt, level)
        except Exception as error:  # the filter is the operator's: whatever it raises, nothing is let through
            log.error("The prompt filter failed: %s: %s", type(error).__name__, error)
            raise NotReady("the prompt filter does not answer", retry_after_s=FILTER_S) from None
        if blocked:
            raise Blocked("the prompt filter blocked the prompt; ask for something else", param="prompt")

    async def _blocked(self, prompt: str, level: str) -> bool:
        assert self._filter is not None
        if inspect.iscoroutinefunction(self._filter.blocked):
            return bool(await self._filter.blocked(prompt, level))
        return bool(await asyncio.to_thread(self._filter.blocked, prompt, level))
