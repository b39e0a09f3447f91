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


#: Families whose files ask to pin a revision.
UNPINNED = ("flux", "stable-diffusion-3.5", "z-image")


@pytest.mark.parametrize("name", sorted(name for name in FAMILIES if not name.startswith(("weir-tiny", *UNPINNED))))
def test_every_family_that_ships_takes_its_weights_from_the_hub_by_revision(name: str) -> None:
    family = FAMILIES[name]
    reported = [made_with(family, variant) for variant in family.variants.values()]
    weights = [value for it in reported for key, value in it.items() if key in ("pipeline", "unet")]
    assert len(weights) >= 2
    for reference in weights:
        revision = reference.partition("@")[2].partition("#")[0]
        assert len(revision) == 40, reference
        int(revision, 16)


@pytest.mark.parametrize("name", UNPINNED)
def test_a_family_without_revisions_says_so(name: str) -> None:
    family = FAMILIES[name]
    assert made_with(family, family.heavy)["pipeline"] == f"{family.pipeline}@latest"
    assert "pin one before you serve" in " ".join(Path(f"deploy/families/{name}.yaml").read_text().split("\n# "))


def test_shared_and_quantised_encoders_are_named() -> None:
    family = FAMILIES["flux"].model_copy(update={"eight_bit_encoders": ("text_encoder_2",)})
    light, heavy = made_with(family, family.light), made_with(family, family.heavy)
    assert light["pipeline"] == "black-forest-labs/FLUX.1-schnell@latest"
    assert light["encoders"] == heavy["pipeline"] == "black-forest-labs/FLUX.1-dev@latest"
    assert "encoders" not in heavy
    assert light["eight_bit_encoders"] == heavy["eight_bit_encoders"] == "text_encoder_2"
