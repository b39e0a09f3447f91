"""A built wheel is complete: the installed ``weir`` runs in an empty folder without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from weir.assets import ROOT

#: Runs the command from the installed packages: as isolated as Python gets, without the folder that it is started in,
#: PYTHONPATH, and ``.pth`` files, by which an environment finds a checkout that is installed for editing.
RUN = """
import sys
sys.path[:0] = [{installed!r}]
sys.path.append({libraries!r})
import weir
assert weir.__file__.startswith({installed!r}), weir.__file__
from cli.main import app
app()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel, which is built offline from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "installed"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and name.split("/")[0] not in ("docs", "tests", "benchmarks", ".venv"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", str(folder), str(source)], check=True)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--no-compile", "--target", str(target), str(wheel)], check=True)
    return target


@pytest.fixture
def weir(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs a command of the installed ``weir`` in another, empty folder."""

    def run(*arguments: str) -> str:
        code = RUN.format(installed=str(installed), libraries=sysconfig.get_path("purelib"))
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-I", "-S", "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.timeout(280)
def test_an_image_is_generated_by_the_embedded_family(weir: Callable[..., str], tmp_path: Path) -> None:
    weir("generate", "a red circle", "--steps", "2", "--out", "image.png")
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (64, 64)


def test_a_plan_is_solved(weir: Callable[..., str]) -> None:
    assert json.loads(weir("plan", "--demand", "24", "--json"))["gpus"]["heavy"] > 0


def test_the_wheel_has_every_shipped_file(installed: Path) -> None:
    shipped = [
        "deploy/configs",
        "deploy/families",
        "deploy/profiles",
        "deploy/ladders",
        "deploy/monitoring/grafana/dashboards",
    ]
    shipped += ["deploy/monitoring/grafana/provisioning", "models/weir-tiny", "traces"]
    for folder in shipped:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".yaml", ".json", ".csv", ".safetensors", ".j2"):
                assert (installed / path.relative_to(ROOT)).is_file(), path.relative_to(ROOT)
    for path in ("deploy/monitoring/rules.yml", "deploy/monitoring/prometheus.yml", "load_balancer/http/page.html"):
        assert (installed / path).is_file()
