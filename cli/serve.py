"""Start, stop and look at a service: ``weir up``, ``weir down``, ``weir render``, ``weir status``, ``weir monitor``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cli.terminal import JsonOption, answered, console, print_json, say
from weir.assets import SERVICE

NameArgument = Annotated[str | None, typer.Argument(help="Name of the service, where several are up.")]


def up(
    config: Annotated[Path, typer.Argument(help="Service file.", show_default="the embedded family")] = SERVICE,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 picks a free one.")] = None,
    detach: Annotated[bool, typer.Option(help="Return once the service is up.")] = False,
    nodes: Annotated[
        int, typer.Option(min=0, max=64, help="Ray nodes for the replicas, beside the head; 0: the head has them.")
    ] = 0,
) -> None:
    """Start a service and stay until Ctrl-C.

    Example: weir up deploy/configs/weir-tiny.yaml --detach
    """
    from deploy.local import up as start

    with answered():
        service = start(config, detach=detach, port=port, nodes=nodes, console=console)
    if service is not None:
        say(f"{service.name} is up at {service.url}; stop it with `weir down`")


def render(
    config: Annotated[Path, typer.Argument(help="Service file.", show_default="the embedded family")] = SERVICE,
) -> None:
    """Write a service as a Serve configuration, for `serve deploy` on a Ray cluster.

    Example: weir render deploy/configs/sdxl-cluster.yaml > serve.yaml
    """
    from deploy.local import checked
    from deploy.serve_config import render as rendered

    with answered():
        service, _ = checked(config)
    body = rendered(config, host=service.http.host, port=service.http.port, controlled=service.controlled)
    sys.stdout.write(yaml.safe_dump(body, sort_keys=False))


def down(name: NameArgument = None) -> None:
    """Stop a service and wait until nothing of it is left.

    Example: weir down
    """
    from deploy.local import down as stop

    with answered():
        service = stop(name)
    say(f"{service.name} is down")


def status(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Show what is up: where it answers, its replicas by role, the plan in force.

    Example: weir status --json
    """
    from deploy.local import status as look

    with answered():
        state = look(name)
    if as_json:
        print_json(state)
    else:
        for key, value in state.items():
            say(f"  {value}", bold=f"{key:>10}")
    raise typer.Exit(0 if state["healthy"] else 1)


def monitor(
    name: NameArgument = None,
    port: Annotated[int, typer.Option(help="Port of Prometheus; 0 picks a free one.")] = 9090,
) -> None:
    """Watch a service with Prometheus on this machine until Ctrl-C, and say how to start Grafana beside it.

    Example: weir monitor --port 9090
    """
    from deploy.monitoring.watch import watch

    with answered():
        watch(name, port=port, console=console)
