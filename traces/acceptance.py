"""What a service will refuse of a trace, known from its own description before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from traces.trace import Arrival, Trace
from weir.errors import ConfigError, ServiceError

GENERATIONS = "/v1/images/generations"
#: Longest wait for the description; a busy service may take its time, and the replay then goes without.
PATIENCE_S = 10.0


def accepted_fields(base_url: str) -> Mapping[str, Any] | None:
    """The fields of a request as the service describes them in JSON schema; None where it does not.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``, with or without ``/v1``.

    Raises:
        ServiceError: nobody listens there.
    """
    root = base_url.rstrip("/").removesuffix("/v1")
    try:
        described = httpx.get(f"{root}/openapi.json", timeout=PATIENCE_S, trust_env=False).json()
        body = described["paths"][GENERATIONS]["post"]["requestBody"]["content"]["application/json"]
        return body["schema"]["properties"]
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServiceError(
            f"nobody answers at {root}: {error}; nothing was sent. Is it up, and the URL right?"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError):
        return None


def expected_refusals(fields: Mapping[str, Any], trace: Trace, model: str | None = None) -> list[str]:
    """A line for each reason for which the service will refuse requests of the trace: how many, why, and one of them.

    Raises:
        ConfigError: it will refuse all of them.
    """
    models = _limit(fields, "model", "enum")
    if model is not None and models is not None and model not in models:
        raise ConfigError(f"the service has no model {model}; it has {', '.join(map(str, models))}")
    longest, pattern = _limit(fields, "prompt", "maxLength"), _limit(fields, "prompt", "pattern")
    least, most = _limit(fields, "seed", "minimum"), _limit(fields, "seed", "maximum")
    reasons: list[tuple[str, Callable[[Arrival], bool], Callable[[Arrival], str]]] = []
    if longest is not None:
        reasons.append(
            (
                f"a prompt longer than {longest} characters",
                lambda it: len(it.prompt) > longest,
                lambda it: f"{len(it.prompt)} characters, {it.prompt[:40]!r}…",
            )
        )
    if pattern is not None:
        reasons.append(
            ("a prompt of nothing", lambda it: not re.search(pattern, it.prompt), lambda it: repr(it.prompt))
        )
    if least is not None and most is not None:
        reasons.append(
            (
                f"a seed that is not from {least} to {most}",
                lambda it: it.seed is not None and not least <= it.seed <= most,
                lambda it: str(it.seed),
            )
        )
    lines, refused = [], set()
    for reason, applies, shown in reasons:
        found = [(index, arrival) for index, arrival in enumerate(trace) if applies(arrival)]
        if found:
            _, first = found[0]
            refused |= {index for index, _ in found}
            lines.append(f"{len(found)} of {len(trace)} requests: {reason}, such as {shown(first)}")
    if len(refused) == len(trace):
        raise ConfigError(f"the service will refuse every request; nothing was sent. {'; '.join(lines)}")
    return lines


def _limit(fields: Mapping[str, Any], name: str, limit: str) -> Any:
    """A limit of one field, which may stand in one of its alternatives."""
    field = fields.get(name, {})
    return next((it[limit] for it in (field, *field.get("anyOf", ())) if limit in it), None)
