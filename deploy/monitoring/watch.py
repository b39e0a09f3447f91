"""``weir monitor``: Prometheus beside a service that is up, and the word on how to see its dashboards."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from deploy.monitoring.prometheus import Prometheus, grafana_command
from deploy.state import FOLDER, StateFile, find
from weir.errors import ServiceError

#: Ray lists its targets within this time of its start.
LISTED_S = 15.0


def watch(name: str | None, *, port: int, console: Console, folder: Path = FOLDER) -> None:
    """Runs Prometheus on the loopback interface until Ctrl-C or SIGTERM, or until the service is down.

    What it has seen stays in ``monitoring`` in the folder of states, for the next time.

    Raises:
        ServiceError: nothing is up, several are and none is named, its targets are listed on another machine, or
            Prometheus does not start; with the remedy.
    """
    state, _ = find(name, folder)

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    prometheus = Prometheus.start(_targets(state), folder / "monitoring" / state.name, port=port)
    try:
        told = Text(f"Prometheus watches {state.name} at {prometheus.url}; Ctrl-C stops it\n")
        told.append(f"Grafana, at http://127.0.0.1:3000:\n{grafana_command(prometheus.url)}")
        console.print(told, soft_wrap=True)
        while prometheus.running and state.held():
            time.sleep(0.5)
        if not prometheus.running:
            raise ServiceError(f"Prometheus ended; its log is {folder / 'monitoring' / state.name / 'prometheus.log'}")
        console.print(Text(f"{state.name} is down"))
    finally:
        prometheus.stop()


def _targets(state: StateFile) -> Path:
    """The list of a service's targets, once it is there.

    Raises:
        ServiceError: it does not come.
    """
    end = time.monotonic() + LISTED_S
    while not state.targets.exists():
        if time.monotonic() > end:
            raise ServiceError(
                f"{state.targets} leads nowhere: Ray lists its targets on the head node of the cluster. Run there: "
                "prometheus --config.file=deploy/monitoring/prometheus.yml --web.listen-address=127.0.0.1:9090"
            )
        time.sleep(0.2)
    return state.targets
