"""Start, stop and inspect a service: ``weir up``, ``weir down``, ``weir render``, ``weir status``, ``weir logs``, …"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cli.terminal import JsonOption, console, error_exit, print_json, print_line, results
from weir.assets import SERVICE
from weir.errors import ServiceError

NameArgument = Annotated[str | None, typer.Argument(help="Name of the service, if several are up.")]


def up(
    config: Annotated[Path, typer.Argument(help="Service file.", show_default="the embedded family")] = SERVICE,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the API; 0 picks a free one.")] = None,
    detach: Annotated[bool, typer.Option(help="Return when the service is up.")] = False,
    nodes: Annotated[
        int, typer.Option(min=0, max=64, help="Ray nodes for the replicas besides the head; 0 runs them on the head.")
    ] = 0,
) -> None:
    """Start a service and run it until Ctrl-C.

    Example: weir up deploy/configs/weir-tiny.yaml --detach
    """
    from deploy.local import up as start

    with error_exit():
        service = start(config, detach=detach, port=port, nodes=nodes, console=console)
    if service is not None:
        print_line(f"{service.name} is up at {service.url}; stop it with `weir down`")


def render(
    config: Annotated[Path, typer.Argument(help="Service file.", show_default="the embedded family")] = SERVICE,
) -> None:
    """Write a service as a Serve configuration, for `serve deploy` on a Ray cluster.

    Example: weir render deploy/configs/sdxl-cluster.yaml > serve.yaml
    """
    from deploy.local import checked
    from deploy.serve_config import render as rendered

    with error_exit():
        service, _ = checked(config)
    body = rendered(
        config,
        host=service.http.host,
        port=service.http.port,
        controlled=service.controlled,
        every_node=service.on_every_node,
    )
    sys.stdout.write(yaml.safe_dump(body, sort_keys=False))


def down(name: NameArgument = None) -> None:
    """Stop a service and wait until all its processes have ended.

    Example: weir down
    """
    from deploy.local import down as stop

    with error_exit():
        service = stop(name, console=console)
    print_line(f"{service.name} is down")


def status(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Show the service that is up: replicas by role, the plan, demand, late images, the cache, and where its logs are.

    The exit code is 1 if the service is not ready. The API key, if the service needs one, is read from WEIR_API_KEY.

    Example: weir status --json
    """
    from deploy.status import described
    from deploy.status import status as look

    with error_exit():
        state = look(name, key=os.environ.get("WEIR_API_KEY"))
    if as_json:
        print_json(state)
    else:
        results.print(described(state))
    raise typer.Exit(0 if state["healthy"] else 1)


def logs(
    name: NameArgument = None,
    request: Annotated[str | None, typer.Option(help="Only records of the request with this id.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new records until Ctrl-C.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the logs.", show_default="that of the service, also if it is down")
    ] = None,
) -> None:
    """Show the logs of all processes of a service in the order of time.

    Example: weir logs --request 6f1b0a2e2f9c4f6e9f0e6d1f0f6d8c11
    """
    from deploy.logs import LogFolder, logs_of

    with error_exit():
        path = folder or logs_of(name)
        files = LogFolder(path)
        found = files.follow(request) if follow else files.read(request)
        for entry in found:
            print_line(entry.text)
        if not found:
            raise ServiceError(_no_records(path, request))


def _no_records(path: Path, request: str | None) -> str:
    if request is None:
        return f"the logs in {path} are empty"
    return f"the logs in {path} have no record of the request {request}; its id is `weir.id` in its answer"


def monitor(
    name: NameArgument = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of Prometheus; 0 picks a free one.")] = 9090,
) -> None:
    """Run Prometheus for a service on this machine until Ctrl-C, and show how to start Grafana.

    Example: weir monitor --port 9090
    """
    from deploy.monitoring.watch import watch

    with error_exit():
        watch(name, port=port, console=console)
