"""Every failure and its HTTP status.

WeirError
├── InvalidRequest      400  a field of a request is invalid (``param`` names it)
│   ├── UnknownModel    404
│   ├── NotFound        404  the resource does not exist, has expired, or belongs to another client
│   ├── Blocked         400  the prompt filter or the image checker objects
│   ├── HeadersTooLarge 431  the head of a request is too large, or has too many headers
│   └── KeyReused       422  an idempotency key was used before with another request
├── Unauthorized        401  the API key is missing or unknown
├── Forbidden           403  the API key lacks the scope that the call needs
├── Conflict            409  the state of the service does not allow the call; nothing changed
├── Cancelled           409  a client cancelled the request before its image was ready
├── BodyTooLarge        413
├── BodyTooSlow         408  the body did not arrive in time
├── RateLimited         429  the client exceeds the limits of its key; has ``retry_after_s``
├── Overloaded          503  the load is too high; refused at admission, has ``retry_after_s``
├── GenerationFailed    500  a worker could not generate this image
│   └── NotFinite                the model's output is not finite
├── NotReady            503  no replica can serve yet; has ``retry_after_s``
│   └── RoleChanged         (internal) the replica changed its role; the request is dispatched again
├── DeadlineExceeded    504  no image was ready by the deadline
├── ConfigError         (at start) a configuration, family, profile or trace is invalid
├── ServiceError        (on the command line) a service cannot be started, or none is up
├── StateRefused        (internal) a stored state does not match; the request runs without it
└── PlanError           (internal) a plan is refused; the current one stays
"""

from __future__ import annotations

from typing import Any


class WeirError(Exception):
    """Base of all failures. ``code`` is stable and machine-readable; the message names the input and the remedy."""

    status = 500
    kind = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def to_dict(self) -> dict[str, Any]:
        """The body of the response, in the format of OpenAI's errors."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class InvalidRequest(WeirError):
    status = 400
    kind = "invalid_request_error"
    code = "invalid_value"


class UnknownModel(InvalidRequest):
    status = 404
    code = "model_not_found"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class KeyReused(InvalidRequest):
    status = 422
    code = "idempotency_key_reused"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "body_too_large"


class Blocked(InvalidRequest):
    kind = "image_generation_user_error"
    code = "moderation_blocked"


class HeadersTooLarge(InvalidRequest):
    status = 431
    code = "headers_too_large"


class Cancelled(WeirError):
    status = 409
    kind = "invalid_request_error"
    code = "cancelled"


class BodyTooSlow(InvalidRequest):
    status = 408
    code = "body_too_slow"


class Unauthorized(WeirError):
    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class Forbidden(WeirError):
    status = 403
    kind = "permission_error"
    code = "forbidden"


class Conflict(WeirError):
    status = 409
    kind = "invalid_request_error"
    code = "conflict"


class RateLimited(WeirError):
    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class Overloaded(WeirError):
    status = 503
    code = "overloaded"


class GenerationFailed(WeirError):
    code = "generation_failed"


class NotFinite(GenerationFailed):
    code = "not_finite"


class NotReady(WeirError):
    status = 503
    code = "not_ready"


class RoleChanged(NotReady):
    code = "role_changed"


class DeadlineExceeded(WeirError):
    status = 504
    code = "deadline_exceeded"


class ConfigError(WeirError):
    code = "invalid_configuration"


class StateRefused(WeirError):
    code = "invalid_state"


class PlanError(WeirError):
    code = "invalid_plan"


class ServiceError(WeirError):
    code = "service_state"


def error_from(body: dict[str, Any]) -> WeirError:
    """The error that :meth:`WeirError.to_dict` wrote; of an unknown code, a plain one."""
    fields, known = body["error"], [WeirError]
    for kind in known:
        known.extend(kind.__subclasses__())
    kind = next((kind for kind in known if kind.code == fields["code"]), WeirError)
    return kind(fields["message"], param=fields["param"])
