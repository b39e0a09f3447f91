"""An answer has the provenance of its image."""

from __future__ import annotations

from pathlib import Path

import pytest

import weir
from load_balancer.runner.provenance import made_with
from weir.config import FamilyConfig, load_family

FAMILIES = {path.stem: load_family(path) for path in sorted(Path("deploy/families").glob("*.yaml"))}


def test_weights_of_the_hub_are_named_with_their_revision() -> None:
    family = FAMILIES["sdxl-lightning"]
    light, heavy = made_with(family, family.light), made_with(family, family.heavy)
    base = f"stabilityai/stable-diffusion-xl-base-1.0@{family.revision}"
    assert light["pipeline"] == heavy["pipeline"] == base
    assert light["unet"] == f"ByteDance/SDXL-Lightning@{family.light.revision}#sdxl_lightning_4step_unet.safetensors"
    assert "unet" not in heavy
    turbo = FAMILIES["sdxl-turbo"]
    assert made_with(turbo, turbo.light)["pipeline"] == f"stabilityai/sdxl-turbo@{turbo.light.revision}"


def test_provenance_has_the_versions_that_can_change_an_image(family: FamilyConfig) -> None:
    reported = made_with(family, family.heavy)
    assert reported["weir"] == weir.__version__
    assert {"torch", "diffusers", "transformers", "scheduler", "dtype"} <= set(reported)
    assert reported["pipeline"] == "nobody/nothing@latest", "the weights have no revision"


def test_provenance_names_the_sampler_that_made_the_image(family: FamilyConfig) -> None:
    assert made_with(family, family.heavy)["scheduler"] == family.heavy.scheduler
    assert made_with(family, family.heavy, "unipc")["scheduler"] == "unipc"


def test_a_local_folder_is_named_without_its_path() -> None:
    family = FAMILIES["weir-tiny"]
    assert made_with(family, family.light)["unet"] == "light_unet@local"
    assert not any("/" in value for value in made_with(family, family.light).values())


@pytest.mark.parametrize("name", sorted(name for name in FAMILIES if not name.startswith("weir-tiny")))
def test_every_family_that_ships_takes_its_weights_from_the_hub_by_revision(name: str) -> None:
    family = FAMILIES[name]
    reported = [made_with(family, variant) for variant in family.variants.values()]
    weights = [value for it in reported for key, value in it.items() if key in ("pipeline", "unet")]
    assert len(weights) >= 2
    for reference in weights:
        revision = reference.partition("@")[2].partition("#")[0]
        assert len(revision) == 40, reference
        int(revision, 16)
