"""Headers of requests that would control Ray Serve: its time limits, and its choice of a replica.

Clients' own never reach it. Without imports: the program that becomes HAProxy reads this at every reload.
"""

#: In lower case, and with ``-`` for ``_``, which Ray Serve takes for one another.
CONTROL_HEADERS = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-session-id",
    "serve-multiplexed-model-id",
)
#: Ray Serve fails at values of these that are not ASCII.
ASCII_HEADERS = ("x-request-id", "traceparent", "tracestate")
