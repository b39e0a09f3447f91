"""Tests of ``weir check``: it recognises a file by its content, and names the error or describes the content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from deploy.check import check
from load_balancer.http.api_keys import append_key, digest, new_key
from weir.assets import CACHE_PROFILE, FAMILY, LADDERS, LEVEL_HEAD, MONITORING, ROOT, SERVICE, WEIGHTS
from weir.config import KeyConfig
from weir.errors import ConfigError
from weir.plan import Plan

SHIPPED = {
    SERVICE: ("service", "serves weir-tiny at 127.0.0.1:8000 within 10 s"),
    FAMILY: ("family", "heavy: weir-tiny-heavy, 50 steps"),
    ROOT / "deploy/profiles/a100-sdxl.json": ("profile", "measured by whole batches"),
    CACHE_PROFILE: ("cache profile", "resumes runs of 50 steps by similarity"),
    LADDERS / "argus-sdxl.json": ("ladder", "7 levels"),
    LEVEL_HEAD: ("level head", "heavy-50"),
    MONITORING / "grafana" / "dashboards": ("folder of dashboards", "Weir: Overview: 12 panels"),
    ROOT / "traces/bursty.csv": ("trace", "2204 requests in 598 s"),
}

PLAN = Plan.split(3, 2, 14, light_batch=4, heavy_batch=2, threshold=0.25)


@pytest.mark.parametrize(("path", "expected"), SHIPPED.items(), ids=lambda it: it.name if isinstance(it, Path) else "")
def test_every_shipped_file_is_recognised_and_valid(path: Path, expected: tuple[str, str]) -> None:
    kind, detail = expected
    found = check(path)
    assert found.kind == kind
    assert detail in "\n".join(found.details)


def test_the_kind_of_a_file_follows_from_its_content(tmp_path: Path) -> None:
    for number, path in enumerate(path for path in SHIPPED if path.is_file() and path not in (SERVICE, FAMILY)):
        copied = tmp_path / f"{number}.txt"
        shutil.copy(path, copied)
        assert check(copied).kind == SHIPPED[path][0]


def test_a_plan_is_described_by_role(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN.to_dict()))
    assert check(path).details == ("version 3: replicas 2 light, 14 heavy; thresholds 0.25; admits all",)


def test_a_keys_file_is_counted_and_never_quoted(tmp_path: Path) -> None:
    path, key = tmp_path / "keys.yaml", new_key()
    append_key(path, KeyConfig(name="root", sha256=digest(key), tenant="ops", admin=True))
    assert check(path).details == ("1 keys of 1 tenants, 1 of administrators",)
    for wrong in (f"keys:\n  - {{name: root, sha256: {key}}}\n", f"keys:\n  - {{name: '{key}\n"):
        path.write_text(wrong)
        with pytest.raises(ConfigError) as refused:
            check(path)
        assert key not in refused.value.message


def changed(path: Path, change: Callable[[dict], object]) -> str:
    fields = yaml.safe_load(path.read_text())
    change(fields)
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("service.yaml", changed(SERVICE, lambda it: it.update(slo_s=-1)), "slo_s"),
        ("service.yaml", changed(SERVICE, lambda it: it.update(family="missing.yaml")), "there is no file"),
        ("family.yaml", changed(FAMILY, lambda it: it["light"].update(steps=0)), "light.steps"),
        ("profile.json", changed(ROOT / "deploy/profiles/a100-sdxl.json", lambda it: it.pop("heavy")), "heavy"),
        ("ladder.json", changed(LADDERS / "argus-sdxl.json", lambda it: it["levels"].reverse()), "levels"),
        ("cache.json", changed(CACHE_PROFILE, lambda it: it["selector"]["levels"].reverse()), "must both decrease"),
        (
            "plan.json",
            json.dumps({"version": 1, "assignments": [], "chain": ["light", "heavy"], "thresholds": [0.5]}),
            "assignments is empty",
        ),
        ("trace.csv", "arrival_s,prompt\nsoon,a cat\n", "line 2"),
        ("what.yaml", "colour: red\n", "cannot tell what it is from the keys colour"),
        ("broken.json", '{"version": 1,', "not valid JSON from line 1"),
        ("empty.yaml", "", "the file is empty; expected keys and values"),
        ("comment.yaml", "# nothing yet\n", "the file is empty; expected keys and values"),
        ("tab.yaml", "slo_s: 10\n\tfamily: x\n", "a tab stands where YAML takes spaces only"),
        ("list.yaml", "- a\n- b\n", "expected keys and values, found a list"),
        ("deep.yaml", "[" * 5000, "nested too deeply"),
        ("deep.json", "[" * 500000, "not valid JSON"),
    ],
    ids=lambda it: it if isinstance(it, str) and len(it) < 14 else "",
)
def test_an_error_names_the_file_and_the_cause(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        check(path)
    assert message in refused.value.message
    assert name in refused.value.message or "missing.yaml" in refused.value.message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_of_a_windows_editor_is_checked(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "service.yaml"
    text = SERVICE.read_text().replace("../", f"{SERVICE.parent.parent}/")
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert check(path).kind == "service"


def test_weights_that_no_service_file_names_are_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="neither a level head nor a match predictor"):
        check(WEIGHTS / "clip" / "model.safetensors")


def test_a_folder_without_dashboards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no dashboard"):
        check(tmp_path)


def test_a_service_is_checked_down_to_the_files_of_its_cache(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"nothing")
    fields = yaml.safe_load(SERVICE.read_text())
    fields |= {"family": str(FAMILY), "profile": str(ROOT / "deploy/profiles/weir-tiny-cpu.json")}
    fields["cache"] |= {"selector": str(CACHE_PROFILE), "predictor": "head.safetensors"}
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(ConfigError, match=r"head\.safetensors: not a match predictor"):
        check(path)


def test_the_command_prints_text_or_json_and_sets_the_exit_code(tmp_path: Path) -> None:
    def weir(*words: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["check", *words], env={"COLUMNS": "200"})
        return done.exit_code, done.stdout, done.stderr

    code, said, _ = weir(str(SERVICE))
    assert (code, said.splitlines()[0]) == (0, f"{SERVICE}: a service, and nothing is wrong with it")
    assert weir(str(tmp_path / "missing"))[0] == 2
    code, printed, _ = weir(str(tmp_path / "missing"), "--json")
    assert code == 2
    assert json.loads(printed)["problems"] == [f"{tmp_path / 'missing'}: there is no such file"]
    code, printed, _ = weir(str(SERVICE), "--json")
    assert code == 0
    assert json.loads(printed)["kind"] == "service"


def test_the_version_is_printed() -> None:
    from weir import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"weir {__version__}\n"


def test_what_never_ends_is_not_read() -> None:
    with pytest.raises(ConfigError, match="is a device, a pipe or a socket"):
        check(Path("/dev/zero"))
