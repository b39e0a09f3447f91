"""A Prometheus of our own on this machine, that watches one service: ``weir monitor``, tests, pictures."""

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
#: What a dashboard looks back at, and a day more.
KEEP = "15d"
START_S = 30.0


class Api:
    """The HTTP API of a Prometheus, wherever it runs.

    Attributes:
        url: where it answers.
    """

    def __init__(self, url: str):
        self.url = url

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an expression now, or at a unix time.

        Raises:
            ServiceError: the expression is wrong, or nobody answers.
        """
        return self._ask("query", {"query": expr} | ({} if at is None else {"time": at}))["result"]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of an expression over a time.

        Raises:
            ServiceError: as :meth:`query`.
        """
        return self._ask("query_range", {"query": expr, "start": start, "end": end, "step": step})["result"]

    def targets(self) -> dict[str, str]:
        """Health of each target, by its address."""
        return {it["labels"]["instance"]: it["health"] for it in self._ask("targets", {})["activeTargets"]}

    def rules(self) -> dict[str, dict[str, Any]]:
        """Every rule that it evaluates, by name."""
        return {rule["name"]: rule for group in self._ask("rules", {})["groups"] for rule in group["rules"]}

    def _ask(self, what: str, params: dict[str, Any]) -> Any:
        try:
            answer = httpx.get(f"{self.url}/api/v1/{what}", params=params, timeout=10).json()
        except (httpx.HTTPError, ValueError) as error:
            raise ServiceError(f"Prometheus at {self.url} does not answer: {error}") from None
        if answer.get("status") != "success":
            raise ServiceError(f"Prometheus refuses {params.get('query', what)}: {answer.get('error')}")
        return answer["data"]


class Prometheus(Api):
    """A server of our own; it listens on the loopback interface only."""

    def __init__(self, process: subprocess.Popen[bytes], url: str):
        super().__init__(url)
        self._process = process

    @classmethod
    def start(
        cls, targets: Path, folder: Path, *, port: int = 0, overrides: dict[str, Any] | None = None
    ) -> Prometheus:
        """Starts one that scrapes the targets of a list, with the rules that ship.

        Args:
            targets: file of targets, as Ray writes it.
            folder: made where missing; takes its configuration, its log and what it remembers.
            port: 0 picks a free one.
            overrides: of the configuration's ``global`` part.

        Raises:
            ServiceError: there is no such program, the port is taken, or it does not start; with the remedy.
        """
        program = shutil.which("prometheus")
        if program is None:
            raise ServiceError(
                "there is no program prometheus; install it (apt-get install prometheus, or make system-packages)"
            )
        port = _free(port)
        folder.mkdir(parents=True, exist_ok=True)
        config, log = folder / "prometheus.yml", folder / "prometheus.log"
        config.write_text(yaml.safe_dump(configured(targets, overrides), sort_keys=False))
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
        """Ends it and waits until it is gone."""
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
                if httpx.get(f"{self.url}/-/ready", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        self.stop()
        last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ServiceError(f"Prometheus did not start; the end of {log}:\n{last}")


def configured(targets: Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration that ships, with another list of targets."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] |= overrides or {}
    config["rule_files"] = [str(RULES)]
    for job in config["scrape_configs"]:
        for discovery in job["file_sd_configs"]:
            discovery["files"] = [str(targets.absolute())]
    return config


def grafana_command(prometheus_url: str, port: int = 3000) -> str:
    """What starts a Grafana beside it, bound to the loopback interface, with the dashboards that ship."""
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
