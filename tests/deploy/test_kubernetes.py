"""The Kubernetes manifests are what Kubernetes and Serve take, and fit one another and the service that they carry."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml

from deploy.serve_config import render
from weir.assets import ROOT
from weir.config import ServiceConfig, load_family

MANIFEST = ROOT / "deploy" / "kubernetes" / "weir.yaml"
KUBERNETES = "1.34"
#: Where the container file puts the checkout.
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
def test_a_resource_is_what_kubernetes_takes(resource):
    valid(resource)


@pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "workers"])
def test_a_pod_is_what_kubernetes_takes(group):
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
    wanted = render(ours, host=http.host, port=http.port, controlled=service().controlled)
    wanted["applications"] = [{**it, "args": config} for it in wanted["applications"]]
    assert body == {**wanted, "proxy_location": "EveryNode"}


def test_the_service_that_it_carries_is_valid_and_its_files_are_in_the_image():
    it = service()
    named = [it.family, it.profile]
    assert all(path.startswith(INSTALLED) for path in named)
    here = [ROOT / path.removeprefix(INSTALLED) for path in named]
    assert all(path.is_file() for path in here)
    load_family(here[0])
    assert f"WORKDIR {INSTALLED.rstrip('/')}" in (ROOT / "deploy" / "clusters" / "Containerfile").read_text()
    assert not it.http.is_local
    assert it.keys_file, "whoever reaches the service could draw"


def test_there_is_a_gpu_for_every_replica():
    [container] = WORKERS["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    plan = service().plan
    assert WORKERS["maxReplicas"] == WORKERS["replicas"] == plan.light_replicas + plan.heavy_replicas
    assert HEAD["rayStartParams"]["num-gpus"] == "0"


def test_an_upgrade_moves_no_more_than_came_up():
    options = of("RayService")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert RAY_CLUSTER["enableInTreeAutoscaling"], "the operator refuses incremental upgrades without it"
    assert WORKERS["minReplicas"] == 0


def test_all_pods_run_the_ray_that_is_pinned_and_ask_for_its_token():
    assert RAY_CLUSTER["rayVersion"] == ray.__version__
    assert RAY_CLUSTER["authOptions"] == {"mode": "token"}


def test_what_pods_mount_and_read_exists_or_is_made_by_the_documented_commands():
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


def test_every_container_is_confined():
    for spec in (HEAD["template"]["spec"], WORKERS["template"]["spec"], of("Deployment")["spec"]["template"]["spec"]):
        assert spec["securityContext"]["runAsNonRoot"]
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
