"""``weir monitor``: runs Prometheus for a running service, and prints how to start Grafana."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from deploy.monitoring.prometheus import Prometheus, grafana_command
from deploy.state import FOLDER, StateFile, find
from weir.errors import ServiceError

#: Ray writes the list of its targets within this time after its start.
LISTED_S = 15.0


def watch(name: str | None, *, port: int, console: Console, folder: Path = FOLDER) -> None:
    """Runs Prometheus on the loopback interface until Ctrl-C or SIGTERM, or until the service is down.

    Its data stays in the folder ``monitoring``, beside the state files, and is used again next time.

    Raises:
        ServiceError: no service is up, several are up and ``name`` is None, the targets are listed on another machine,
            or Prometheus does not start; the message names the remedy.
    """
    state, _ = find(name, folder)

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    prometheus = Prometheus.start(_targets(state), folder / "monitoring" / state.name, port=port)
    try:
        message = Text(f"Prometheus monitors {state.name} at {prometheus.url}; Ctrl-C stops it\n")
        message.append(f"To start Grafana at http://127.0.0.1:3000:\n{grafana_command(prometheus.url)}")
        console.print(message, soft_wrap=True)
        while prometheus.running and state.lock.held():
            time.sleep(0.5)
        if not prometheus.running:
            raise ServiceError(f"Prometheus ended; its log is {folder / 'monitoring' / state.name / 'prometheus.log'}")
        console.print(Text(f"{state.name} is down"))
    finally:
        prometheus.stop()


def _targets(state: StateFile) -> Path:
    """Waits for the list of a service's targets and returns its path.

    Raises:
        ServiceError: the list does not appear in time.
    """
    end = time.monotonic() + LISTED_S
    while not state.targets.exists():
        if time.monotonic() > end:
            raise ServiceError(
                f"{state.targets} does not exist: Ray writes the list on the head node of the cluster. Run there: "
                "prometheus --config.file=deploy/monitoring/prometheus.yml --web.listen-address=127.0.0.1:9090"
            )
        time.sleep(0.2)
    return state.targets
