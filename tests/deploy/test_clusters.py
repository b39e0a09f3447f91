"""The shipped cluster files match Ray's schema, the checkout and one another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from benchmarks.ray_up import CLUSTER, KEYS, SERVICE, write_files
from cache.factory import SECRET, URL
from load_balancer.http.api_keys import append_key
from weir.config import KeyConfig, load_service

CLUSTERS = Path(__file__).parents[2] / "deploy" / "clusters"
RAY_UP = sorted(CLUSTERS.glob("*.yaml"))


def ray_up(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_a_cluster_file_is_valid_for_ray_up(path):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    prepared = prepare_config(ray_up(path))
    jsonschema.validate(prepared, schema)
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError, match="worker_setup_command"):
        jsonschema.validate({**prepared, "worker_setup_command": []}, schema)


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_the_files_in_the_commands_of_a_cluster_file_exist_in_the_checkout(path):
    fields = ray_up(path)
    commands = " ".join(word for key, lines in fields.items() if key.endswith("commands") for word in lines).split()
    named = {word.rstrip(";") for word in commands if word.startswith("~/weir/")}
    assert len(named) == 7
    for word in named:
        assert (CLUSTERS.parents[1] / word.removeprefix("~/weir/")).is_file(), word


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_the_dashboard_listens_on_the_head_only_and_every_node_has_the_token(path):
    fields = ray_up(path)
    assert "--dashboard-host=127.0.0.1" in fields["head_start_ray_commands"][-1]
    assert fields["file_mounts"]["~/.ray/auth_token"] == "~/.weir-secrets/ray_token"


def test_both_cluster_files_use_the_same_commands_and_mounts():
    one, other = (ray_up(path) for path in RAY_UP)
    same = {key for key in one if key.endswith("commands") or "mount" in key or "rsync" in key}
    assert {key: one[key] for key in same} == {key: other[key] for key in same}


def test_the_demo_changes_only_hosts_keys_and_family_of_the_shipped_cluster_file(tmp_path):
    root = CLUSTERS.parents[1]
    shutil.copytree(root / "deploy", tmp_path / "deploy")
    write_files(tmp_path, ["10.0.0.1", "10.0.0.2"], tmp_path / "key")
    demo, shipped = ray_up(tmp_path / CLUSTER), ray_up(CLUSTERS / "on-premises.yaml")
    validate_config(prepare_config(demo))
    assert demo["provider"] | {"worker_ips": []} == {"type": "local", "head_ip": "10.0.0.1", "worker_ips": []}
    assert {key for key in shipped if demo[key] != shipped[key]} == {"provider", "auth", "setup_commands"}
    append_key(tmp_path / KEYS, KeyConfig(name="operator", sha256="0" * 64, tenant="public"))
    service, _ = load_service(tmp_path / SERVICE)
    assert service.controlled
    assert service.pool.emulate


def test_the_environment_of_a_node_has_the_variables_of_replicas_and_cache(tmp_path):
    made = subprocess.run(["bash", CLUSTERS / "secrets.sh", tmp_path / ".weir-secrets"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    secrets = {path.name: path.read_text() for path in (tmp_path / ".weir-secrets").iterdir()}
    assert set(secrets) == {"ray_token", "redis_password", "cache_secret"}
    assert all((tmp_path / ".weir-secrets" / name).stat().st_mode & 0o077 == 0 for name in secrets)
    sourced = subprocess.run(
        ["sh", "-c", f". {CLUSTERS / 'env.sh'}; env"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SSH_CONNECTION": "10.0.0.1 5 10.0.0.7 22"},
        capture_output=True,
        text=True,
    )
    given = dict(line.split("=", 1) for line in sourced.stdout.splitlines() if "=" in line)
    assert given[URL] == f"redis://:{secrets['redis_password']}@10.0.0.7:6380/0"
    assert given[SECRET] == secrets["cache_secret"]
    assert (given["NODE_IP"], given["RAY_AUTH_MODE"]) == ("10.0.0.7", "token")


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_has_valid_shell_syntax(path):
    shell = "sh" if path.name == "env.sh" else "bash"
    assert subprocess.run([shutil.which(shell) or shell, "-n", path], capture_output=True).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="taking the network away needs root; `make ray-up-demo` does it, too")
def test_a_node_that_is_set_up_is_set_up_again_without_a_network_and_without_variables() -> None:
    bare = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    command = ["unshare", "--net", "bash", str(CLUSTERS / "setup.sh")]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
