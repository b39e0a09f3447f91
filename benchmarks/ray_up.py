"""Runs ``ray up`` to ``ray down`` with the cluster file for one's own hosts, on emulated hosts on this machine.

    python -m benchmarks.ray_up [--workers 1] [--seconds 60]

In between it replays a trace, scales the pool, takes a host away and gets it back while requests come, kills Ray on the
head while another host is asked, and deploys the service again with another deadline. A host is a set of Linux
namespaces (processes, network, mounts) with its own home folder, ``/tmp`` and sshd. Another one is the laptop, which
has a copy of this checkout and runs the commands of ``docs/deploy.md`` and ``docs/operating.md``. The cluster file is
the shipped one with other addresses, user, key and family; the workers are emulated, and the cache is on. The hosts are
isolated from all other networks, and all of them end with this command.

It needs root and the programs in :data:`PROGRAMS`. The setup script of hosts makes the first virtual environment with
network access; the hosts have no network access. The exit code is 1 when a step fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import command
from deploy.monitoring.prometheus import Api

REPOSITORY = Path(__file__).resolve().parent.parent
LAPTOP, HEAD = "10.77.0.1", "10.77.0.10"
#: Folder of the hosts on this machine; it is short because Ray's Unix sockets require short paths.
ROOT = Path("/var/tmp/weir-ray-up")
HOME = ROOT / "home"
PROGRAMS = ("unshare", "nsenter", "ip", "rsync", "sshd", "ssh-keygen", "redis-server", "prometheus")
SKIPPED = (".git", ".venv", ".weir", "runs", "__pycache__", "node_modules", ".*_cache", ".hypothesis")
NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
CLUSTER, SERVICE = "deploy/clusters/here.yaml", "deploy/configs/here.yaml"
KEYS = "deploy/configs/here-keys.yaml"
SERVED, PROMETHEUS = "http://127.0.0.1:8000", "http://127.0.0.1:9090"
REPLAY = ("weir", "replay", "traces/bursty.csv", "--url", SERVED, "--slo", "15")
MAINTENANCE = (
    *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "maintenance"),
    *("--deadline-remaining-seconds", "60"),
)
SSH = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
#: Starts Ray again on a host that was taken away, as the cluster file does it.
RETURN = (
    f"export RAY_HEAD_IP={HEAD}; . ~/weir/deploy/clusters/env.sh; "
    "ray start --address=$RAY_HEAD_IP:6379 --node-ip-address=$NODE_IP --metrics-export-port=8080"
)
#: Kills Ray's main processes of a host, and with the raylet all others.
KILL = "pkill -9 gcs_server; pkill -9 raylet"
READY_S = 240.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="number of hosts beside the head")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of traces/bursty.csv")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        sys.exit(_inside(given.inside, given.workers, given.seconds))
    missing = [it for it in PROGRAMS if shutil.which(it, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None]
    if missing or os.geteuid() != 0:
        sys.exit(f"error: needs root; missing programs: {', '.join(missing) or 'none'}")
    ROOT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=ROOT) as name:
        command = ["unshare", *NAMESPACES, sys.executable, "-m", "benchmarks.ray_up", "--inside", name]
        command += ["--workers", str(given.workers), "--seconds", str(given.seconds)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        # All hosts start with a copy of one virtual environment, which the setup script of hosts makes.
        _print("setup.sh on a host, with the network")
        made = ["unshare", "--mount", sys.executable, "-c", _FIRST_HOST, name]
        code = subprocess.run(made, env=environment, cwd=REPOSITORY).returncode
        sys.exit(code or subprocess.run(command, env=environment, cwd=REPOSITORY).returncode)


_FIRST_HOST = (
    "import sys; from pathlib import Path; from benchmarks.ray_up import first_host; first_host(Path(sys.argv[1]))"
)


def first_host(run: Path) -> None:
    """Sets up the home folder that every host starts with: with packages from where this machine's pip finds them."""
    home, mine = run / "template", Path.home()
    shutil.copytree(REPOSITORY, home / "weir", ignore=shutil.ignore_patterns(*SKIPPED))
    (home / ".bashrc").write_text(f"export PATH={os.environ['PATH']}\n")  # Ray runs commands in an interactive shell
    if (mine / ".config/pip").is_dir():
        shutil.copytree(mine / ".config/pip", home / ".config/pip")
    caches = {"UV_CACHE_DIR": str(mine / ".cache/uv"), "PIP_CACHE_DIR": str(mine / ".cache/pip")}
    _mount(home, run)
    subprocess.run(["bash", f"{HOME}/weir/deploy/clusters/setup.sh"], env=_environment() | caches, check=True)


def _inside(run: Path, workers: int, seconds: float) -> int:
    """Starts the hosts and runs the commands on the laptop. Returns the exit code."""
    addresses = [HEAD, *(f"10.77.0.{20 + number}" for number in range(workers))]
    for line in ("link set lo up", "link add weir-lan type bridge", f"addr add {LAPTOP}/24 dev weir-lan"):
        _run("ip", *line.split())
    _run("ip", "link", "set", "weir-lan", "up")
    key = run / "key"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    for number, address in enumerate(addresses):
        _host(run, number, address, key)
    _take_home(run, "laptop")
    checkout = HOME / "weir"
    binaries = checkout / ".venv" / "bin"
    os.environ |= _environment() | {"PYTHONPATH": str(checkout), "PATH": f"{binaries}:{os.environ['PATH']}"}
    os.chdir(checkout)
    write_files(checkout, addresses, key)
    try:
        _commands(run, checkout, addresses, seconds)
    except subprocess.CalledProcessError as error:
        _print(f"FAILED: {error}")
        return 1
    return 0


class _Laptop:
    """Runs the commands of a user, prints them, and writes their output to a log."""

    def __init__(self, log: Path) -> None:
        self._log, self._began = log, time.monotonic()

    def step(self, *command: str, quiet: bool = False, shown: bool = False) -> str:
        """Runs a command and returns its output; ``shown`` prints the output as well.

        Raises:
            CalledProcessError: the command failed.
        """
        if not quiet:
            self.say(f"$ {' '.join(command)}")
        with self._log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            errors = subprocess.STDOUT if shown else log
            done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=errors)
            log.write(done.stdout)
        if done.returncode and not quiet:
            _print("\n".join(self._log.read_text().splitlines()[-30:]))
        done.check_returncode()
        if shown:
            _print(textwrap.indent(done.stdout.strip(), " " * 8))
        return done.stdout

    def read(self, *command: str) -> Any:
        """Runs a command that prints JSON or YAML, without printing anything."""
        return yaml.safe_load(self.step(*command, quiet=True))

    def until(self, condition: Callable[[], str | bool]) -> None:
        """Waits until a condition returns a message, and prints it.

        Raises:
            CalledProcessError: the condition did not hold in time.
        """
        end = time.monotonic() + READY_S
        while True:
            with suppress(subprocess.CalledProcessError):
                if found := condition():
                    return self.say(f"  {found}")
            if time.monotonic() > end:
                raise subprocess.CalledProcessError(1, "wait for a condition")
            time.sleep(1)

    def say(self, line: str) -> None:
        _print(f"{time.monotonic() - self._began:4.0f} s  {line}")


def _commands(run: Path, checkout: Path, hosts: list[str], seconds: float) -> None:
    """Runs the commands of ``docs/deploy.md`` and ``docs/operating.md``, one after the other."""
    laptop = _Laptop(run / "log")
    laptop.step("bash", "deploy/clusters/secrets.sh")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(HOME / ".weir-secrets" / "ray_token")}
    key = laptop.step("weir", "keys", "new", "--name", "operator", "--admin", "--file", KEYS)
    os.environ["WEIR_API_KEY"] = key.strip()
    laptop.step("ray", "up", "-y", CLUSTER)
    try:
        with ExitStack() as stack:
            for port in (8265, 8000, 9090):
                stack.enter_context(_forwarded(run / "key", port))
            _deploy(laptop, checkout, hosts)
            laptop.step(*REPLAY, "--duration", f"{seconds:g}", shown=True)
            laptop.step("ray", "exec", CLUSTER, "touch ~/weir/requirements.lock; bash ~/weir/deploy/clusters/setup.sh")
            _print(f"        Prometheus: {_figure('sum(ray_weir_images_asked_total)'):g} images asked for")
            _print(f"        its targets: {Api(PROMETHEUS).targets()}")
            _resize(laptop, hosts[-1], run / "key", run / "resize.log")
            _lose_head(laptop, hosts[-1], run / "key", run / "head.log")
            _change_the_deadline(laptop, checkout)
            laptop.step("serve", "shutdown", "-y")
    finally:
        laptop.step("ray", "exec", CLUSTER, "bash ~/weir/deploy/clusters/stop.sh")
        laptop.step("ray", "down", "-y", CLUSTER)
    laptop.until(lambda: "" if _servers() else "no server of Ray, Redis or Prometheus is left on any host")


def _deploy(laptop: _Laptop, checkout: Path, hosts: list[str]) -> None:
    """Deploys the service once all hosts are there, and says where its replicas are."""

    def joined() -> str | bool:
        there = {it["node_ip"] for it in _nodes(laptop)}
        return there == set(hosts) and f"Ray runs on {', '.join(sorted(there))}"

    def running() -> str | bool:
        found = laptop.read("serve", "status")["applications"]
        ready = len(found) == 2 and all(it["status"] == "RUNNING" for it in found.values())
        return ready and f"{' and '.join(found)} run"

    laptop.until(joined)
    (checkout / "serve.yaml").write_text(laptop.step("weir", "render", SERVICE))
    laptop.step("serve", "deploy", "serve.yaml")
    laptop.until(running)
    laptop.until(lambda: _places(laptop))


def _resize(laptop: _Laptop, host: str, key: Path, log: Path) -> None:
    """Scales the pool down and up, then takes one host away and gets it back, all under load."""
    with log.open("w") as out:
        replay = subprocess.Popen((*REPLAY, "--redraw", "1", "--no-images"), text=True, stdout=out, stderr=out)
        try:
            for size in (4, 6):
                _scale(laptop, size)
            node = next(it["node_id"] for it in _nodes(laptop) if it["node_ip"] == host)
            away = [it["id"] for it in _replicas(laptop) if it["node"] == node]
            for replica in away:
                laptop.step("weir", "admin", "drain", replica, "--url", SERVED)
            laptop.until(lambda: "nothing in flight there" * _idle(laptop, away))
            laptop.step("ray", "drain-node", "--address", f"{HEAD}:6379", "--node-id", node, *MAINTENANCE)
            laptop.until(lambda: "the host is gone" * all(it["node_id"] != node for it in _nodes(laptop)))
            laptop.until(lambda: len(_replicas(laptop)) == 6 and _places(laptop))
            laptop.step("ssh", "-q", "-i", str(key), *SSH, f"root@{host}", RETURN)
            laptop.until(lambda: "the host is back" * any(it["node_ip"] == host for it in _nodes(laptop)))
            _scale(laptop, 8)
        finally:
            replay.send_signal(signal.SIGINT)
            replay.wait()
    _print(textwrap.indent(log.read_text().strip(), " " * 8))


def _lose_head(laptop: _Laptop, host: str, key: Path, log: Path) -> None:
    """Kills every process of Ray on the head while a trace is replayed against another host, which knows nothing of it.
    Afterwards the pool can be scaled again."""
    with _forwarded(key, 8000, host, local=8001), log.open("w") as out:
        asked = [*REPLAY, "--redraw", "2", "--no-images", "--duration", "60"]
        asked[asked.index(SERVED)] = "http://127.0.0.1:8001"
        replay = subprocess.Popen(asked, text=True, stdout=out, stderr=out)
        try:
            time.sleep(15)
            before = _started(laptop)
            laptop.step("ssh", "-q", "-i", str(key), *SSH, f"root@{HEAD}", KILL)
            laptop.until(lambda: "Ray runs on the head again" * (_started(laptop) != before))
            laptop.until(lambda: len(_replicas(laptop)) == 8 and _places(laptop))
            _scale(laptop, 6)
        finally:
            replay.wait()
    _print(textwrap.indent(log.read_text().strip(), " " * 8))


def _started(laptop: _Laptop) -> str:
    """Identity of the head's Ray node."""
    return next(it["node_id"] for it in _nodes(laptop) if it["is_head_node"])


def _scale(laptop: _Laptop, size: int) -> None:
    laptop.step("weir", "admin", "scale", str(size), "--url", SERVED)
    laptop.until(lambda: len(_replicas(laptop)) == size and _places(laptop))


def _idle(laptop: _Laptop, replicas: list[str]) -> bool:
    return not any(it["in_flight"] for it in _replicas(laptop) if it["id"] in replicas)


def _change_the_deadline(laptop: _Laptop, checkout: Path) -> None:
    """Deploys the service again with a changed field."""
    service = checkout / SERVICE
    service.write_text(service.read_text().replace("slo_s: 15", "slo_s: 20"))
    laptop.step("ray", "rsync-up", CLUSTER, SERVICE, f"~/weir/{SERVICE}")
    (checkout / "serve.yaml").write_text(laptop.step("weir", "render", SERVICE))
    laptop.step("serve", "deploy", "serve.yaml")
    laptop.until(lambda: "the changed deadline holds" * (_figure("max(ray_weir_deadline_seconds)") == 20))


def _servers() -> list[str]:
    """Returns the names of the servers that run on the hosts. Their processes are visible on the laptop, which started
    the hosts. Zombies are ignored."""
    looks = (it.info for it in psutil.process_iter(["name", "status"]) if it.info["status"] != "zombie")
    return [it["name"] for it in looks if it["name"] in ("raylet", "gcs_server", "redis-server", "prometheus")]


def _nodes(laptop: _Laptop) -> list[dict[str, Any]]:
    """The Ray nodes that are alive."""
    found = laptop.read("ray", "list", "nodes", "--format", "json", "--address", "http://127.0.0.1:8265")
    return [it for it in found if it["state"] == "ALIVE"]


def _replicas(laptop: _Laptop) -> list[dict[str, Any]]:
    """The replicas of the pool that take part in the plan."""
    found = laptop.read("weir", "admin", "plan", "--json", "--url", SERVED)["replicas"]
    return [it for it in found if it["state"] in ("serving", "drained")]


def _places(laptop: _Laptop) -> str:
    """Says how many replicas each host has."""
    names = {it["node_id"]: it["node_ip"] for it in _nodes(laptop)}
    count = Counter(names.get(it["node"], "a host that is gone") for it in _replicas(laptop))
    return ", ".join(f"{number} replicas on {host}" for host, number in sorted(count.items()))


def _figure(expr: str) -> float:
    """The value of a query of Prometheus, 0 if there is none."""
    return next((float(it["value"][1]) for it in Api(PROMETHEUS).query(expr)), 0.0)


def write_files(checkout: Path, addresses: list[str], key: Path) -> None:
    """Writes the shipped cluster file with the addresses of the hosts, and the service file of emulated workers."""
    fields = yaml.safe_load((checkout / "deploy/clusters/on-premises.yaml").read_text())
    head, *workers = addresses
    fields["provider"] |= {"head_ip": head, "worker_ips": [*workers, "10.77.0.254"]}
    fields["auth"] |= {"ssh_user": "root", "ssh_private_key": str(key)}
    fields["setup_commands"] = [it.replace("sdxl-lightning", "weir-tiny") for it in fields["setup_commands"]]
    (checkout / CLUSTER).write_text(yaml.safe_dump(fields))
    service = yaml.safe_load((checkout / "deploy/configs/emulated-16.yaml").read_text())
    service["plan"] |= {"light_replicas": 2, "heavy_replicas": 4}
    service |= {
        "balancers": 2,
        "controller": {"policy": "weir"},
        "cache": {"mode": "read-write", "encoder": "words", "fetch_s": 0.5, "lookup_s": 2},
        # On every host, so that a client of one of them does not notice that the head is away.
        "http": {"host": "0.0.0.0", "port": 8000},
        "keys_file": Path(KEYS).name,
    }
    (checkout / SERVICE).write_text(yaml.safe_dump(service))


def _host(run: Path, number: int, address: str, key: Path) -> None:
    """Starts a host with its namespaces, home folder, address and sshd."""
    name = f"host{number}"
    shutil.copytree(run / "template", run / name, symlinks=True, copy_function=os.link)
    code = f"from pathlib import Path; from benchmarks.ray_up import serve_ssh; serve_ssh(Path('{run}'), '{name}')"
    process = subprocess.Popen(["unshare", *NAMESPACES, sys.executable, "-c", code])
    (run / name / ".ssh").mkdir(mode=0o700)
    shutil.copy(key.with_suffix(".pub"), run / name / ".ssh" / "authorized_keys")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (child := children.read_text().strip()):
        time.sleep(0.05)
    inside, outside = f"weir-in{number}", f"weir-out{number}"
    _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
    _run("ip", "link", "set", outside, "master", "weir-lan", "up")
    _run("ip", "link", "set", inside, "netns", child)
    enter = ("nsenter", f"--target={child}", "--net", "ip")
    _run(*enter, "link", "set", "lo", "up")
    _run(*enter, "addr", "add", f"{address}/24", "dev", inside)
    _run(*enter, "link", "set", inside, "up")


def serve_ssh(run: Path, name: str) -> None:
    """Sets up the home folder of a host and replaces this process by sshd."""
    _take_home(run, name)
    folder = Path("/tmp/sshd")
    folder.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/host")
    lines = [
        f"HostKey {folder}/host",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin prohibit-password",
        "MaxStartups 100",
    ]
    lines += [
        "MaxSessions 100",
        "PrintMotd no",
        "SetEnv " + " ".join(f"{k}={v}" for k, v in _environment().items()),
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
    os.execv(sshd, [sshd, "-D", "-e", "-f", str(folder / "config"), "-E", str(run / f"{name}.log")])


def _take_home(run: Path, name: str) -> None:
    """Mounts a separate home folder and ``/tmp`` in this mount namespace."""
    home = run / name
    if not home.exists():
        shutil.copytree(run / "template", home, symlinks=True, copy_function=os.link)
    _run("mount", "--make-rprivate", "/")
    kept = run / "checkout"  # this program, which may be in /tmp itself
    kept.mkdir(exist_ok=True)
    _run("mount", "--bind", str(REPOSITORY), str(kept))
    _run("mount", "-t", "tmpfs", "tmpfs", "/tmp")
    if REPOSITORY.is_relative_to("/tmp"):
        REPOSITORY.mkdir(parents=True)
        _run("mount", "--bind", str(kept), str(REPOSITORY))
    _mount(home, run)


def _mount(home: Path, run: Path) -> None:
    """Mounts a folder as root's home in this mount namespace only, with a matching ``/etc/passwd``."""
    _run("mount", "--make-rprivate", "/")
    HOME.mkdir(parents=True, exist_ok=True)
    _run("mount", "--bind", str(home), str(HOME))
    shown = run / "passwd"
    lines = [it for it in Path("/etc/passwd").read_text().splitlines() if not it.startswith("root:")]
    shown.write_text("\n".join([f"root:x:0:0:root:{HOME}:/bin/bash", *lines]) + "\n")
    _run("mount", "--bind", str(shown), "/etc/passwd")


def _environment() -> dict[str, str]:
    """Returns the environment of a shell on a host, which has no network access."""
    return {"PATH": os.environ["PATH"], "HOME": str(HOME), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


@contextmanager
def _forwarded(key: Path, port: int, host: str = HEAD, local: int = 0) -> Iterator[None]:
    """Forwards a port of a host, like ``ray attach -p``, which needs a terminal."""
    options = ["-N", "-i", str(key), *SSH, "-L", f"127.0.0.1:{local or port}:127.0.0.1:{port}"]
    process = subprocess.Popen(["ssh", "-q", *options, f"root@{host}"])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    command(main)
