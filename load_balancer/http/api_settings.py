"""The settings of the HTTP application, of which a service file has most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weir.config import LimitsConfig, ServiceConfig
from weir.prompts import PromptSyntax


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Settings of the HTTP application.

    Attributes:
        limits: of requests.
        aliases: additional model names → the models they stand for.
        prompt_syntax: of requests that name none.
        prompt_filter: ``module:name`` of the operator's filter of prompts; None: there is none.
        allowed_origins: origins whose web pages may call the API; ``*`` allows all.
        behind_serve: whether Ray Serve's proxy forwards the requests, and adds their ids to the responses.
    """

    limits: LimitsConfig = field(default_factory=LimitsConfig)
    aliases: Mapping[str, str] = field(default_factory=dict)
    prompt_syntax: PromptSyntax = "plain"
    prompt_filter: str | None = None
    allowed_origins: Sequence[str] = ()
    behind_serve: bool = False

    @classmethod
    def of(cls, service: ServiceConfig, *, behind_serve: bool) -> ApiSettings:
        """The settings of a service file."""
        return cls(
            limits=service.limits,
            aliases=service.aliases,
            prompt_syntax=service.prompt_syntax,
            prompt_filter=service.prompt_filter,
            allowed_origins=service.http.allowed_origins,
            behind_serve=behind_serve,
        )
