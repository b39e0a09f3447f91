"""Calls to the HTTP API of a service, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from deploy.state import FOLDER, find
from weir.errors import Conflict, Forbidden, InvalidRequest, NotReady, ServiceError, Unauthorized, WeirError

#: Seconds to wait for an answer. A purge may take longer than the service waits for its cache.
TIMEOUT_S = 150.0
_ERRORS: dict[int, type[WeirError]] = {401: Unauthorized, 403: Forbidden, 409: Conflict, 503: NotReady}


class ApiClient:
    """The API of one service.

    Args:
        url: base URL.
        key: API key, if the service needs one.
        timeout_s: a call without an answer fails after this time.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float = TIMEOUT_S):
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout_s = timeout_s

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns the JSON object that the service answers.

        Raises:
            NotReady: it does not answer, or not yet.
            Unauthorized, Forbidden: the key is unknown, or lacks a scope.
            InvalidRequest: it refuses the request; the message is its own.
            Conflict: its state does not allow the call.
            ServiceError: it is no service of this version.
        """
        try:
            answer = httpx.request(
                method, self.url + path, json=body, headers=self._headers, timeout=self._timeout_s, trust_env=False
            )
        except httpx.TimeoutException:
            raise NotReady(f"{self.url} did not answer within {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NotReady(f"{self.url} does not answer: {error}; check that the service is up") from None
        try:
            found = answer.json()
            if answer.is_success and isinstance(found, dict):
                return found
            message = str(found["error"]["message"])
        except (ValueError, KeyError, TypeError):
            raise ServiceError(f"{self.url}{path} answered {answer.status_code} without JSON of Weir's API") from None
        kind = InvalidRequest if answer.status_code < 500 else WeirError
        raise _ERRORS.get(answer.status_code, kind)(message)


def client_of(name: str | None, url: str | None, key: str | None, folder: Path = FOLDER) -> ApiClient:
    """The client of a service by its URL, else by its name, else of the only one that is up.

    Raises:
        ServiceError: a name and a URL are given, or no such service is up.
    """
    if url is not None:
        if name is not None:
            raise ServiceError("--service and --url both name a service; give one of them")
        return ApiClient(url, key)
    _, service = find(name, folder)
    return ApiClient(service.url, key)
