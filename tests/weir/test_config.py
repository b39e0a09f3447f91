"""Configuration files: valid ones are read, and errors name the file, the key and the remedy."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from weir.config import CacheConfig, FamilyConfig, PlanConfig, load_family, load_service
from weir.errors import ConfigError
from weir.plan import Plan

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
        ({"plan": {"light_replicas": 1}}, "heavy_replicas is missing"),
        ({"plan": {"light_replicas": 1, "heavy_replicas": 1, "replicas": {"light": 1}}}, "give either replicas"),
        ({"plan": {"replicas": {"light": 1, "medium": 1, "heavy": 1}}}, "plan.replicas.medium: .* light, heavy"),
        ({"plan": {"replicas": {"light": 1}}}, "plan.replicas: heavy, the last variant, is missing"),
        ({"plan": {"replicas": {"light": 1, "heavy": 1}, "batch": {"medium": 1}}}, "plan.batch.medium"),
        (
            {"plan": {"replicas": {"light": 1, "heavy": 1}, "thresholds": {"heavy": 0.5}}},
            "plan.thresholds.heavy: heavy is the last variant of the plan; leave it out",
        ),
        ({"plan": {"replicas": {"heavy": 1}, "thresholds": {"light": 0.5}}}, "light has no entry in replicas"),
        ({"pairs": [{"family": "a.yaml", "profile": "a.json"}]}, "list all light variants .* under variants in one"),
        ({"http": {"port": 99999}}, "http.port"),
        ({"family": "nowhere.yaml"}, "nowhere.yaml"),
        ({"profile": "nowhere.json"}, "weir profile"),
        ({"controller": {"policy": "weir"}}, "controller.policy weir needs a profile; create one with `weir profile`"),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        load_service(service(tmp_path, **changes))
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1,\n", "\tx: 1\n"])
def test_a_file_without_a_valid_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_service(path)


# ------------------------------------------------------------------------------------------------------ ladders

FAMILY = {"name": "f", "pipeline": "p", "size": 64}


def variant(name: str, **fields: object) -> dict[str, object]:
    return {"name": name, "scheduler": "ddim", "steps": 2, "guidance": 1} | fields


THREE = {
    "light": variant("l", discriminator="d"),
    "medium": variant("m", discriminator="d"),
    "heavy": variant("h", steps=50),
}


def test_light_heavy_and_discriminator_are_a_short_form_of_two_variants() -> None:
    short = FamilyConfig.model_validate(
        FAMILY | {"light": variant("l"), "heavy": variant("h"), "discriminator": "somewhere"}
    )
    whole = FAMILY | {"variants": {"light": variant("l", discriminator="somewhere"), "heavy": variant("h")}}
    assert short == FamilyConfig.model_validate(whole)
    assert (short.keys, short.light.name, short.heavy.name) == (("light", "heavy"), "l", "h")
    assert short.discriminator == "somewhere"


def test_the_sizes_of_a_family_file_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(
        yaml.safe_dump(FAMILY | {"variants": THREE, "size": 64}, sort_keys=False) + "sizes: [32, 96x64, '48']\n"
    )
    assert load_family(path).allowed_sizes.listed == ((64, 64), (32, 32), (96, 64), (48, 48))


def test_a_family_names_its_sizes_by_side_or_by_width_and_height() -> None:
    family = FamilyConfig.model_validate(FAMILY | {"variants": THREE, "size": 64, "sizes": [32, "96x64"]})
    assert family.allowed_sizes.listed == ((64, 64), (32, 32), (96, 64))
    assert FamilyConfig.model_validate_json(family.model_dump_json()) == family


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        (["96 x 64"], "write WIDTHxHEIGHT"),
        (["wide"], "'wide' is not a size"),
        ([8], "8 is out of range; a side has 16 to 4096 pixels"),
        (["64x8192"], "64x8192 is out of range"),
        (["64x64"], "name each size once"),
        ([32, "32x32"], "name each size once"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: list[int | str], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        FamilyConfig.model_validate(FAMILY | {"variants": THREE, "size": 64, "sizes": sizes})


def test_a_ladder_keeps_its_order_when_serialised() -> None:
    family = FamilyConfig.model_validate(FAMILY | {"variants": THREE})
    assert family.keys == ("light", "medium", "heavy")
    assert FamilyConfig.model_validate_json(family.model_dump_json()) == family


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"variants": {"heavy": THREE["heavy"]}}, "at least two"),
        ({"light": THREE["light"]}, "heavy is missing"),
        ({"variants": THREE, "light": THREE["light"]}, "give either variants, or light, heavy"),
        ({"variants": {"Light": THREE["light"], "heavy": THREE["heavy"]}}, "'Light' is not a valid key"),
        ({"variants": {"cache": THREE["light"], "heavy": THREE["heavy"]}}, "'cache' is not a valid key"),
        ({"variants": {"light-deadline": THREE["light"], "heavy": THREE["heavy"]}}, "nor end in -deadline"),
        ({"variants": {"light": THREE["light"], "heavy": variant("l")}}, "each needs a different one"),
        (
            {"variants": {**THREE, "heavy": variant("h", discriminator="d")}},
            "the last variant defers no images",
        ),
        ({"variants": {**THREE, "medium": variant("m", discriminator="clip")}}, "medium: .* no clip is named"),
    ],
)
def test_an_invalid_ladder_is_refused(fields: dict, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        FamilyConfig.model_validate(FAMILY | fields)


def test_an_error_in_the_short_form_names_the_key_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(yaml.safe_dump(FAMILY | {"light": variant("l", steps=0), "heavy": variant("h")}))
    with pytest.raises(ConfigError, match=r"family\.yaml: light\.steps: "):
        load_family(path)


def test_a_plan_for_a_ladder_has_defaults_for_batches_and_thresholds() -> None:
    given = {"replicas": {"heavy": 2, "light": 1, "medium": 1}, "batch": {"light": 8}, "thresholds": {"medium": 0.3}}
    plan = PlanConfig.model_validate(given).plan(("light", "medium", "heavy"))
    assert plan.chain == ("light", "medium", "heavy"), "in the order of the ladder"
    assert plan.thresholds == (0.5, 0.3)
    assert [(a.role, a.batch_size) for a in plan.assignments] == [
        ("light", 8),
        ("medium", 4),
        ("heavy", 4),
        ("heavy", 4),
    ]


def test_a_plan_may_leave_out_a_variant() -> None:
    plan = PlanConfig.model_validate({"replicas": {"light": 1, "heavy": 2}}).plan(("light", "medium", "heavy"))
    assert (plan.chain, plan.thresholds) == (("light", "heavy"), (0.5,))


def test_the_short_form_of_a_plan_has_light_and_heavy() -> None:
    short = {"light_replicas": 1, "heavy_replicas": 2, "light_batch": 2, "heavy_batch": 3, "threshold": 0.7}
    plan = PlanConfig.model_validate(short).plan(("light", "heavy"))
    assert plan == Plan.split(1, 1, 2, light_batch=2, heavy_batch=3, threshold=0.7)


def test_a_threshold_without_a_judge_is_refused(tmp_path: Path) -> None:
    family = tmp_path / "family.yaml"
    family.write_text(yaml.safe_dump(FAMILY | {"variants": {**THREE, "medium": variant("m")}}, sort_keys=False))
    for shared in ("p", "d"):
        (tmp_path / shared).mkdir()
    replicas = {"light": 1, "medium": 1, "heavy": 1}
    path = service(tmp_path, family=str(family), plan={"replicas": replicas})
    with pytest.raises(ConfigError, match=r"plan\.thresholds\.medium is 0\.5, and medium of f has no discriminator"):
        load_service(path)
    load_service(service(tmp_path, family=str(family), plan={"replicas": replicas, "thresholds": {"medium": 1}}))
    profile = Path("deploy/profiles/a100-sdxl.json").resolve()
    emulated = {"replicas": replicas}, {"emulate": str(profile)}
    load_service(service(tmp_path, family=str(family), plan=emulated[0], pool=emulated[1]))


def test_levels_are_refused_for_several_light_variants(tmp_path: Path) -> None:
    family = Path("deploy/families/weir-tiny-three.yaml").resolve()
    with pytest.raises(
        ConfigError, match=r"cache\.levels: levels are fitted on one light variant, and weir-tiny-three"
    ):
        load_service(service(tmp_path, family=str(family), cache={"mode": "read", "levels": "head"}))


def test_shadow_samples_need_a_level_head_and_a_cache():
    with pytest.raises(ValidationError, match="shadow needs levels"):
        CacheConfig(mode="read-write", shadow=0.02)
    with pytest.raises(ValidationError, match="a mode other than off"):
        CacheConfig(levels="head.safetensors", shadow=0.02)
    assert CacheConfig(mode="read", levels="head.safetensors", shadow=0.02).shadow == 0.02
