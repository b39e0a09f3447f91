"""Start, stop and inspect a service: ``weir up``, ``weir down``, ``weir render``, ``weir status``, ``weir monitor``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cli.terminal import JsonOption, console, error_exit, print_json, print_line
from weir.assets import SERVICE

NameArgument = Annotated[str | None, typer.Argument(help="Name of the service, if several are up.")]


def up(
    config: Annotated[Path, typer.Argument(help="Service file.", show_default="the embedded family")] = SERVICE,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 picks a free one.")] = None,
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
    body = rendered(config, host=service.http.host, port=service.http.port, controlled=service.controlled)
    sys.stdout.write(yaml.safe_dump(body, sort_keys=False))


def down(name: NameArgument = None) -> None:
    """Stop a service and wait until all its processes have ended.

    Example: weir down
    """
    from deploy.local import down as stop

    with error_exit():
        service = stop(name)
    print_line(f"{service.name} is down")


def status(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Show the service that is up: its URL, its replicas by role, and the current plan.

    Example: weir status --json
    """
    from deploy.local import status as look

    with error_exit():
        state = look(name)
    if as_json:
        print_json(state)
    else:
        for key, value in state.items():
            print_line(f"  {value}", bold=f"{key:>10}")
    raise typer.Exit(0 if state["healthy"] else 1)


def monitor(
    name: NameArgument = None,
    port: Annotated[int, typer.Option(help="Port of Prometheus; 0 picks a free one.")] = 9090,
) -> None:
    """Run Prometheus for a service on this machine until Ctrl-C, and show how to start Grafana.

    Example: weir monitor --port 9090
    """
    from deploy.monitoring.watch import watch

    with error_exit():
        watch(name, port=port, console=console)
