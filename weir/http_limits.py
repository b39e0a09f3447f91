"""What the two front doors limit: Ray Serve's own proxy, and its HAProxy before several load balancers.

Without imports: the program that becomes HAProxy reads this at every reload.
"""

#: Headers that would control Ray Serve, its time limits and its choice of a replica. Clients' own never reach it. In
#: lower case, and with ``-`` for ``_``, which Ray Serve takes for one another.
CONTROL_HEADERS = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-session-id",
    "serve-multiplexed-model-id",
)
#: Ray Serve fails at values of these that are not ASCII.
ASCII_HEADERS = ("x-request-id", "traceparent", "tracestate")

#: Largest size of the request line and all headers, bytes.
MOST_HEAD_BYTES = 64 * 1024
#: Time in which they have to arrive, seconds.
HEAD_S = 10
