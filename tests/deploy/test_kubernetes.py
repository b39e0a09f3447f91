"""The manifest is valid for Kubernetes and Ray Serve, and its parts match one another and its service file."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml

from deploy.haproxy import environment
from deploy.serve_config import render
from weir.assets import ROOT
from weir.config import ServiceConfig, load_family

MANIFEST = ROOT / "deploy" / "kubernetes" / "weir.yaml"
KUBERNETES = "1.34"
#: Path of the checkout in the image.
INSTALLED = "/home/weir/weir/"
ALL: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))


def of(kind: str) -> dict[str, Any]:
    return next(it for it in ALL if it["kind"] == kind)


RAY_CLUSTER = of("RayService")["spec"]["rayClusterConfig"]
HEAD = RAY_CLUSTER["headGroupSpec"]
[WORKERS] = RAY_CLUSTER["workerGroupSpecs"]


def valid(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "resource",
    [it for it in ALL if it["kind"] != "RayService"],
    ids=lambda it: f"{it['kind']} {it['metadata']['name']}",
)
def test_a_resource_is_valid_for_kubernetes(resource):
    valid(resource)


@pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "workers"])
def test_a_pod_is_valid_for_kubernetes(group):
    template = group["template"]
    valid({"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "pod", **template["metadata"]}})
    misspelt = {"containers": [{**template["spec"]["containers"][0], "livenesProbe": {}}]}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": misspelt})


def service() -> ServiceConfig:
    return ServiceConfig.model_validate(yaml.safe_load(of("ConfigMap")["data"]["service.yaml"]))


def test_the_serve_configuration_is_the_rendered_one_with_a_proxy_on_every_node(serve_schema):
    body = yaml.safe_load(of("RayService")["spec"]["serveConfigV2"])
    serve_schema.model_validate(body)
    config, http = {"config": "/etc/weir/service/service.yaml"}, service().http
    ours = ROOT / "deploy" / "configs" / "sdxl-cluster.yaml"
    expected = render(ours, host=http.host, port=http.port, controlled=service().controlled)
    expected["applications"] = [{**it, "args": config} for it in expected["applications"]]
    assert body == {**expected, "proxy_location": "EveryNode"}


def test_the_service_file_of_the_manifest_is_valid_and_its_files_are_in_the_image():
    it = service()
    named = [it.family, it.profile]
    assert all(path.startswith(INSTALLED) for path in named)
    here = [ROOT / path.removeprefix(INSTALLED) for path in named]
    assert all(path.is_file() for path in here)
    load_family(here[0])
    assert f"WORKDIR {INSTALLED.rstrip('/')}" in (ROOT / "deploy" / "clusters" / "Containerfile").read_text()
    assert not it.http.is_local
    assert it.keys_file, "without keys every client could generate images"


def test_an_haproxy_is_before_the_load_balancers_in_every_pod(tmp_path):
    expected = environment(tmp_path / "door", (9101, 8404), 3600)
    expected = {name: text.replace(str(tmp_path), "/home/weir") for name, text in expected.items()}
    expected["RAY_SERVE_HAPROXY_NBTHREAD"] = "4"  # else that of the machine
    for group in (HEAD, WORKERS):
        [container] = group["template"]["spec"]["containers"]
        given = {it["name"]: it.get("value") for it in container["env"]}
        assert {name: given.get(name) for name in expected} == expected
    assert service().balancers == 2
    image = (ROOT / "deploy" / "clusters" / "Containerfile").read_text()
    assert "RUN python -m deploy.haproxy /home/weir/door 3600" in image


def test_the_state_of_rays_gcs_is_in_redis_which_has_room_for_it():
    options = RAY_CLUSTER["gcsFaultToleranceOptions"]
    [port] = of("Service")["spec"]["ports"]
    assert options["redisAddress"] == f"{of('Service')['metadata']['name']}:{port['port']}"
    redis = of("Deployment")["spec"]["template"]["spec"]["containers"][0]
    [password] = [it for it in redis["env"] if it["name"] == "REDIS_PASSWORD"]
    assert options["redisPassword"] == {"valueFrom": password["valueFrom"]}
    assert service().cache.budget_mib <= 4096, "Redis has 6 GB, and the state of the load balancers is in it as well"


def test_every_replica_has_a_gpu():
    [container] = WORKERS["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    plan = service().plan
    assert WORKERS["maxReplicas"] == WORKERS["replicas"] == plan.size
    assert HEAD["rayStartParams"]["num-gpus"] == "0"


def test_an_upgrade_moves_at_most_the_share_of_requests_that_new_replicas_can_serve():
    options = of("RayService")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert RAY_CLUSTER["enableInTreeAutoscaling"], "the operator refuses incremental upgrades without it"
    assert WORKERS["minReplicas"] == 0


def test_all_pods_run_the_pinned_ray_version_and_require_its_token():
    assert RAY_CLUSTER["rayVersion"] == ray.__version__
    assert RAY_CLUSTER["authOptions"] == {"mode": "token"}


def test_mounts_and_secrets_of_pods_exist_or_are_created_by_the_documented_commands():
    made = {it["metadata"]["name"] for it in ALL}
    documented = (ROOT / "docs" / "deploy.md").read_text()
    for spec in (HEAD["template"]["spec"], WORKERS["template"]["spec"], of("Deployment")["spec"]["template"]["spec"]):
        volumes = {it["name"]: it for it in spec.get("volumes", ())}
        secrets = {it["secret"]["secretName"] for it in volumes.values() if "secret" in it}
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            assert {it["name"] for it in container.get("volumeMounts", ())} <= set(volumes)
            for variable in container.get("env", ()):
                if "valueFrom" in variable:
                    secrets.add(variable["valueFrom"]["secretKeyRef"]["name"])
                    assert f"{variable['valueFrom']['secretKeyRef']['key']}=" in documented
        assert all(f"kubectl create secret generic {name} " in documented for name in secrets)
        assert {it["configMap"]["name"] for it in volumes.values() if "configMap" in it} <= made
        assert {
            it["persistentVolumeClaim"]["claimName"] for it in volumes.values() if "persistentVolumeClaim" in it
        } <= made


def test_every_container_runs_with_restricted_privileges():
    for spec in (HEAD["template"]["spec"], WORKERS["template"]["spec"], of("Deployment")["spec"]["template"]["spec"]):
        assert spec["securityContext"]["runAsNonRoot"]
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
