"""Predicts which requests of a trace a service will refuse, from its OpenAPI description."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from traces.trace import Arrival, Trace
from weir.core import ImageSize
from weir.errors import ConfigError, ServiceError

GENERATIONS = "/v1/images/generations"
#: Time limit for fetching the description; the replay runs without it if a busy service takes longer.
DESCRIPTION_TIMEOUT_S = 10.0


def accepted_fields(base_url: str) -> Mapping[str, Any] | None:
    """The JSON schema of a request's fields from the service's description; None if it has none.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``, with or without ``/v1``.

    Raises:
        ServiceError: the connection failed.
    """
    root = base_url.rstrip("/").removesuffix("/v1")
    try:
        described = httpx.get(f"{root}/openapi.json", timeout=DESCRIPTION_TIMEOUT_S, trust_env=False).json()
        body = described["paths"][GENERATIONS]["post"]["requestBody"]["content"]["application/json"]
        return body["schema"]["properties"]
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServiceError(
            f"no server answers at {root}: {error}; nothing was sent. Check that it runs and that the URL is right"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError):
        return None


def service_facts(base_url: str, key: str | None = None) -> Mapping[str, Any]:
    """What a service says of itself in ``/v1/live``: its ``policy``, and of ``service`` the ``family``, ``slo_s``,
    ``version`` and ``device``. Empty for a server that says nothing of this kind.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``, with or without ``/v1``.
        key: API key of the service, if it needs one.
    """
    root = base_url.rstrip("/").removesuffix("/v1")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        live = httpx.get(f"{root}/v1/live", headers=headers, timeout=DESCRIPTION_TIMEOUT_S, trust_env=False).json()
        return {**live["service"], "policy": live["policy"], "slo_s": float(live["service"]["slo_s"])}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError):
        return {}


def expected_refusals(fields: Mapping[str, Any], trace: Trace, model: str | None = None) -> list[str]:
    """One line for each reason why the service will refuse requests: their number, the reason and an example.

    Raises:
        ConfigError: the service will refuse all requests.
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
        reasons.append(("an empty prompt", lambda it: not re.search(pattern, it.prompt), lambda it: repr(it.prompt)))
    if least is not None and most is not None:
        reasons.append(
            (
                f"a seed outside {least} to {most}",
                lambda it: it.seed is not None and not least <= it.seed <= most,
                lambda it: str(it.seed),
            )
        )
    if fields.get("size"):
        reason = "a size that the service does not have"
        reasons.append((reason, lambda it: not _has_size(fields, it.size), lambda it: str(it.size)))
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


def _has_size(fields: Mapping[str, Any], size: ImageSize | None) -> bool:
    """Whether the schema of the size accepts a size; None: the service's own."""
    listed, pattern = _limit(fields, "size", "enum"), _limit(fields, "size", "pattern")
    if size is None or (listed is None and pattern is None):
        return True
    return str(size) in (listed or ()) or (pattern is not None and re.search(pattern, str(size)) is not None)


def _limit(fields: Mapping[str, Any], name: str, limit: str) -> Any:
    """A limit in the schema of one field or of one of its alternatives; None if it has none."""
    field = fields.get(name, {})
    return next((it[limit] for it in (field, *field.get("anyOf", ())) if limit in it), None)
