"""A wrong configuration names the file, the key and the remedy, before anything starts."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from controller.policies import POLICIES
from weir.config import CacheConfig, ControllerConfig, load_family, load_service
from weir.errors import ConfigError

SERVICE = yaml.safe_load(Path("deploy/configs/weir-tiny.yaml").read_text())


def service(tmp_path: Path, **changes: object) -> Path:
    family = Path("deploy/families/weir-tiny.yaml").resolve()
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump({**SERVICE, "family": str(family), "profile": None, "controller": {}, **changes}))
    return path


@pytest.mark.parametrize("path", sorted(Path("deploy/families").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_family_is_valid(path: Path) -> None:
    assert load_family(path).name


@pytest.mark.parametrize("path", sorted(Path("deploy/configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_service_is_valid(path: Path) -> None:
    configured, family = load_service(path)
    assert configured.slo_s > 0
    assert family.light.name


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"slo_s": -1}, "slo_s"),
        ({"slo_s": "soon"}, "slo_s"),
        ({"colour": "red"}, "colour"),
        ({"plan": {"light_replicas": 0, "heavy_replicas": 0}}, "light_replicas"),
        ({"plan": {"light_replicas": 1, "heavy_replicas": 1, "threshold": 3}}, "plan.threshold"),
        ({"http": {"port": 99999}}, "http.port"),
        ({"family": "nowhere.yaml"}, "nowhere.yaml"),
        ({"profile": "nowhere.json"}, "weir profile"),
        ({"controller": {"policy": "weir"}}, "controller.policy weir needs a profile; make one with `weir profile`"),
        ({"controller": {"policy": "magic"}}, "controller.policy"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        load_service(service(tmp_path, **changes))
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1,\n", "\tx: 1\n"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_service(path)


def test_every_policy_that_a_service_may_name_exists() -> None:
    named = ControllerConfig.model_fields["policy"].annotation.__args__  # type: ignore[union-attr]
    assert set(named) - {"static"} <= set(POLICIES)


def test_shadow_samples_need_a_head_that_they_check():
    with pytest.raises(ValidationError, match="shadow needs levels"):
        CacheConfig(mode="read-write", shadow=0.02)
    with pytest.raises(ValidationError, match="a mode other than off"):
        CacheConfig(levels="head.safetensors", shadow=0.02)
    assert CacheConfig(mode="read", levels="head.safetensors", shadow=0.02).shadow == 0.02
