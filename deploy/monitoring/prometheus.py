"""A Prometheus process on this machine that monitors one service, for ``weir monitor`` and tests."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from weir.assets import MONITORING
from weir.errors import ServiceError
from weir.ports import listenable

CONFIG = MONITORING / "prometheus.yml"
RULES = MONITORING / "rules.yml"
#: Retention time: a dashboard's longest range and one more day.
KEEP = "15d"
START_S = 30.0


class Api:
    """Client of the HTTP API of a Prometheus.

    Attributes:
        url: base URL of the server.
    """

    def __init__(self, url: str):
        self.url = url

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an expression, now or at a unix time.

        Raises:
            ServiceError: the expression is wrong, or the server does not answer.
        """
        return self._get("query", {"query": expr} | ({} if at is None else {"time": at}))["result"]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of an expression over a range of unix times, with ``step`` seconds between values.

        Raises:
            ServiceError: as :meth:`query`.
        """
        return self._get("query_range", {"query": expr, "start": start, "end": end, "step": step})["result"]

    def targets(self) -> dict[str, str]:
        """Health of each target, by its address."""
        return {it["labels"]["instance"]: it["health"] for it in self._get("targets", {})["activeTargets"]}

    def rules(self) -> dict[str, dict[str, Any]]:
        """Every evaluated rule, by name."""
        return {rule["name"]: rule for group in self._get("rules", {})["groups"] for rule in group["rules"]}

    def _get(self, endpoint: str, params: dict[str, Any]) -> Any:
        try:
            response = httpx.get(f"{self.url}/api/v1/{endpoint}", params=params, timeout=10, trust_env=False).json()
        except (httpx.HTTPError, ValueError) as error:
            raise ServiceError(f"Prometheus at {self.url} does not answer: {error}") from None
        if response.get("status") != "success":
            raise ServiceError(f"Prometheus refuses {params.get('query', endpoint)}: {response.get('error')}")
        return response["data"]


class Prometheus(Api):
    """A server that this process started; it listens on the loopback interface only."""

    def __init__(self, process: subprocess.Popen[bytes], url: str):
        super().__init__(url)
        self._process = process

    @classmethod
    def start(
        cls, targets: Path, folder: Path, *, port: int = 0, overrides: dict[str, Any] | None = None
    ) -> Prometheus:
        """Starts a server that scrapes the listed targets and evaluates Weir's rules.

        Args:
            targets: file of targets, as Ray writes it.
            folder: holds the configuration, the log and the data; created when missing.
            port: 0 picks a free one.
            overrides: replace values of the configuration's ``global`` section.

        Raises:
            ServiceError: the program is not installed, the port is taken, or the server does not start; the message
                names the remedy.
        """
        program = shutil.which("prometheus")
        if program is None:
            raise ServiceError(
                "the program prometheus is missing; install it (apt-get install prometheus, or make system-packages)"
            )
        port = _free(port)
        folder.mkdir(parents=True, exist_ok=True)
        config, log = folder / "prometheus.yml", folder / "prometheus.log"
        config.write_text(yaml.safe_dump(configuration(targets, overrides), sort_keys=False))
        command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.retention.time={KEEP}"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        running = cls(process, f"http://127.0.0.1:{port}")
        running._wait_ready(log)
        return running

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Stops the server and waits until its process has ended."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_ready(self, log: Path) -> None:
        end = time.monotonic() + START_S
        while self.running and time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/-/ready", timeout=2, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        self.stop()
        last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ServiceError(f"Prometheus did not start; the end of {log}:\n{last}")


def configuration(targets: Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of ``prometheus.yml`` with another list of targets."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] |= overrides or {}
    config["rule_files"] = [str(RULES)]
    for job in config["scrape_configs"]:
        for discovery in job["file_sd_configs"]:
            discovery["files"] = [str(targets.absolute())]
    return config


def grafana_command(prometheus_url: str, port: int = 3000) -> str:
    """The command that starts a Grafana with Weir's dashboards on the loopback interface."""
    folder = MONITORING / "grafana"
    return (
        f"docker run --rm --network host -e GF_SERVER_HTTP_ADDR=127.0.0.1 -e GF_SERVER_HTTP_PORT={port} "
        f"-e WEIR_PROMETHEUS_URL={prometheus_url} -v {folder}/provisioning:/etc/grafana/provisioning:ro "
        f"-v {folder}/dashboards:/var/lib/grafana/dashboards:ro grafana/grafana:13.2.3"
    )


def _free(port: int) -> int:
    try:
        return listenable("127.0.0.1", port)
    except OSError as error:
        raise ServiceError(
            f"Prometheus cannot listen on 127.0.0.1:{port}: {error.strerror}; choose another --port, or 0"
        ) from None
