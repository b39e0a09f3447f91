"""The command line: results of commands, and exit code 2 with the remedy and no traceback for invalid input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from cli import main
from cli.main import app
from testing.pictures import gradient, transparent
from weir.assets import ROOT
from weir.core import ImageSize

PLAN = ("plan", "--demand", "24", "--objective", "threshold", "--slo", "5", "--queue-delay", "0", "0")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace of 40 s with 4 requests per second, in DiffServe's format."""
    path = tmp_path / "trace.csv"
    path.write_text("".join(f"{250 * i},{i % 50}\n" for i in range(160)))
    return path


def weir(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def refusal(*words: str | Path) -> str:
    """The error message of a command that is used wrongly."""
    result = weir(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def test_a_plan_is_the_optimum_of_diffserves_problem():
    result = weir(*PLAN, "--solver", "highs", "--json")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert {"threshold", "deferral", "gpus", "batch_sizes", "status", "solve_ms"} <= set(plan)
    assert (plan["status"], plan["solver"], sum(plan["gpus"].values())) == ("optimal", "highs", 16)


def test_a_plan_is_explained_in_words():
    result = weir("plan", "--demand", "24")
    assert result.exit_code == 0
    assert result.stdout.startswith("24 requests/s on 16 GPUs within 5 s")


def test_a_generated_image_comes_with_the_number_of_tokens_that_were_not_used(tmp_path):
    words = ("generate", "a red circle left of a blue star " * 60, "--variant", "light", "--seed", "1")
    result = weir(*words, "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert "the prompt is too long: its last 240 tokens were not used" in result.output
    assert json.loads(weir(*words, "--out", tmp_path / "a.png", "--json").stdout)["unused_tokens"] == 240


def test_a_service_is_rendered_for_serve_deploy():
    result = weir("render", "deploy/configs/sdxl-cluster.yaml")
    assert result.exit_code == 0, result.output
    body = yaml.safe_load(result.stdout)
    assert [it["name"] for it in body["applications"]] == ["weir", "weir-controller"]
    assert "missing.yaml: there is no such file" in refusal("render", "missing.yaml")


def test_several_policies_are_simulated_on_the_same_arrivals(trace, tmp_path):
    plot = tmp_path / "new" / "plot.svg"
    result = weir(
        "simulate", "--trace", trace, "--gpus", "4", "--policy", "weir", "--policy", "all-light",
        "--gpu-hour-price", "2", "--plot", plot, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["policy"], row["requests"]) for row in rows] == [("weir", 160), ("all-light", 160)]
    assert rows[0]["windowed_quality"] < rows[1]["windowed_quality"]  # FID: smaller is better
    assert rows[0]["cost_per_1000_images"] > 0
    assert plot.read_text().lstrip().startswith("<?xml")


def test_cascades_say_which_quality_is_better(trace):
    tables = weir("cascades", "diffserve-1", "diffserve-2", "--trace", trace).stdout
    assert tables.count("quality: lower is better") == 2


def test_all_policies_are_compared(trace, tmp_path):
    from controller.registry import names

    page = tmp_path / "page.html"
    result = weir("compare", "--trace", trace, "--plot", page)
    assert result.exit_code == 0, result.output
    assert "<svg" in page.read_text()
    assert all(name in result.stdout for name in names(levels=False))
    assert "fluid bound" in result.stdout
    assert result.stderr == f"written to {page}\n"  # no result


def test_several_policies_for_a_ladder_are_simulated(trace, tmp_path):
    plot = tmp_path / "plot.html"
    result = weir(
        "simulate", "--trace", trace, "--family", "argus-sdxl", "--gpus", "8",
        "--policy", "weir-levels", "--policy", "pac", "--plot", plot, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["policy"], row["requests"]) for row in rows] == [("weir-levels", 160), ("pac", 160)]
    assert all(row["peak_throughput_per_min"] > 0 and 90 < row["peak_quality"] <= 100 for row in rows)
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ((), "demand"),
        (("--demand", "-1"), "demand"),
        (("--demand", "nan"), "demand"),
        (("--demand", "4", "--gpus", "0"), "gpus"),
        (("--demand", "4", "--slo", "-5"), "slo is -5"),
        (("--demand", "4", "--family", "dall-e"), "known: diffserve-1"),
        (("--demand", "4", "--objective", "speed"), "choose one of threshold, quality"),
        (("--demand", "4", "--solver", "abacus"), "highs"),
        (("--demand", "4", "--queue-delay", "0", "-1"), "--queue-delay is 0 -1; give seconds from 0"),
    ],
)
def test_invalid_arguments_of_plan_are_refused(words, remedy):
    assert remedy in refusal("plan", *words)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--policy", "magic"), "diffserve-static"),
        (("--scores", "missing.txt"), "missing.txt"),
        (("--plot", "plot.doc"), "end in .html, .svg, .png or .pdf"),
        (("--seed", "-1"), "seed"),
        (("--family", "argus-sdxl", "--policy", "diffserve"), "choose a policy for levels: weir-levels"),
        (("--family", "argus-sdxl", "--gpu-hour-price", "2"), "--gpu-hour-price are for cascades"),
    ],
)
def test_invalid_arguments_of_simulate_are_refused(trace, words, remedy):
    assert remedy in refusal("simulate", "--trace", trace, *words)


def test_a_missing_trace_is_refused():
    assert "missing.csv" in refusal("simulate", "--trace", "missing.csv")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("up", "missing.yaml"), "there is no such file"),
        (("levels", "check", "missing.safetensors"), "fit it again with `weir levels fit`"),
        (("up", "--port", "many"), "port"),
        (("down", "unknown"), "start it with `weir up`"),
        (("generate", " "), "describe the image"),
        (("generate", "a", "--out", "missing/a.png"), "there is no folder missing"),
        (("generate", "a", "--family", "missing.yaml"), "there is no such file"),
        (("generate", "a", "--threshold", "2"), "threshold"),
        (("generate", "a", "--adapter", "noon:1"), "--adapter is 'noon:1'; weir-tiny has noir"),
        (("generate", "a", "--adapter", "noir:strong"), "write NAME:SCALE, such as noir:0.7"),
        (("generate", "a", "--adapter", "noir:9"), "its scale lies in -4…4"),
        (("replay", "missing.csv", "--url", "http://127.0.0.1:9"), "missing.csv"),
        (("replay", "missing.csv", "--rate", "-1"), "rate"),
        (("profile", "--out", "p.json", "--batch-sizes", "one"), "give whole numbers like 1,2,4,8"),
        (("profile", "--out", "p.json", "--batch-sizes", "0"), "batch"),
        (("profile", "--out", "p.json", "--prompts", "missing.txt"), "there is no file missing.txt"),
        (("profile", "--out", "missing/p.json", "--family", "missing.yaml"), "there is no such file"),
        (("train", "--budget", "large"), "choose one of"),
        (("keys", "new", "--name", "no spaces"), "--name"),
        (("keys", "new", "--name", "alice", "--images-per-minute", "0"), "--images-per-minute"),
        (("keys", "list"), "there is no such file"),
    ],
)
def test_invalid_arguments_are_refused_with_their_remedy(words, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert remedy in refusal(*words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("generate", "a", "--out", "."), ".: is a folder"),
        (("profile", "--out", "taken/p.json"), "taken: cannot write in this folder"),
        (("profile", "--out", "."), ".: is a folder"),
        (("evaluate", "--out", "taken"), "taken: cannot write in this folder"),
        (("evaluate", "--card", "taken"), "taken: cannot write in this folder"),
        (("train", "--out", "taken"), "taken: cannot write in this folder"),
        (("train", "--out", ".", "--work", "taken"), "taken: cannot write in this folder"),
        (("levels", "fit", "--out", "taken/head.safetensors"), "taken: cannot write in this folder"),
        (("levels", "fit", "--out", "head.safetensors", "--work", "taken"), "taken: cannot write in this folder"),
        (("compare", "--trace", "trace.csv", "--plot", "taken/plot.svg"), "taken: cannot write in this folder"),
        (("cache", "replay-log", "trace.csv", "--plot", "taken/plot.svg"), "taken: cannot write in this folder"),
        (("keys", "new", "--name", "alice", "--file", "taken/keys.yaml"), "taken: cannot write in this folder"),
    ],
)
def test_an_output_path_that_cannot_be_written_is_refused_before_any_work(trace, words, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workers.models.family.Family.load", None)  # all these commands load the family first
    Path("taken").touch()
    assert problem in refusal(*words)


def test_a_picture_is_edited_and_what_the_mask_covers_stays(tmp_path):
    size = ImageSize(96, 64)
    gradient(size).save(tmp_path / "a.png")
    transparent(size).save(tmp_path / "mask.png")
    files = "--image", tmp_path / "a.png", "--mask", tmp_path / "mask.png", "--out", tmp_path / "b.png"
    seeded = "--variant", "light", "--seed", "1", "--strength", "0.5", "--json"
    result = weir("generate", "a red circle", *seeded, *files)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 1
    with Image.open(tmp_path / "b.png") as image:
        left = image.crop((0, 0, 48, 64))
        assert image.size == size
        assert left.tobytes() == gradient(size).crop((0, 0, 48, 64)).tobytes()
        assert image.crop((48, 0, 96, 64)).tobytes() != gradient(size).crop((48, 0, 96, 64)).tobytes()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--image", "missing.png"), "missing.png cannot be read"),
        (("--image", "text.png"), "--image text.png: image is no image of these formats"),
        (("--image", "a.png", "--mask", "a.png"), "--mask a.png: mask has no alpha channel"),
        (("--image", "a.png", "--strength", "0"), "--strength is 0; accepted: a number above 0"),
        (("--mask", "a.png"), "--mask needs --image"),
        (("--strength", "0.5"), "--strength needs --image"),
        (("--image", "a.png", "--size", "65x64"), "size"),
    ],
)
def test_a_picture_that_cannot_be_edited_is_refused_before_any_work(words, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workers.models.family.Family.load", None)
    Path("text.png").write_text("nothing")
    gradient(ImageSize(64, 64)).save("a.png")
    assert problem in refusal("generate", "a", *words)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")]
)
def test_the_extension_decides_the_format_of_a_generated_image(name, kind, tmp_path):
    words = ("--variant", "light", "--seed", "1", "--adapter", "noir:0.5")
    result = weir("generate", "a red circle", *words, "--out", tmp_path / name)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / name) as image:
        assert image.format == kind
    assert result.stdout.startswith(f"{tmp_path / name}: ")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("generate", "a", "--out", "a.gif"), "--out is a.gif; its name has to end in .png, .jpg, .jpeg or .webp"),
        (("generate", "a", "--out", "a"), "--out is a; its name has to end in"),
        (("profile", "--out", "p.csv"), "--out is p.csv; its name has to end in .json"),
        (("cache", "profile", "--out", "p.csv"), "--out is p.csv; its name has to end in .json"),
        (
            ("cache", "fit-predictor", "log.txt", "--out", "p.bin"),
            "--out is p.bin; its name has to end in .safetensors",
        ),
        (("cache", "replay-log", "trace.csv", "--plot", "p.jpg"), "--plot is p.jpg; its name has to end in .svg, .png"),
        (("levels", "fit", "--out", "head.json"), "--out is head.json; its name has to end in .safetensors"),
        (("compare", "--trace", "trace.csv", "--plot", "p.jpg"), "--plot is p.jpg; its name has to end in .html, .svg"),
    ],
)
def test_an_unknown_extension_is_refused_before_any_work(trace, words, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workers.models.family.Family.load", None)  # the work begins with it
    assert remedy in refusal(*words)
    assert list(tmp_path.iterdir()) == [trace]


@pytest.mark.parametrize("command", [c.name or c.callback.__name__ for c in app.registered_commands if c.callback])
def test_every_command_shows_an_example(command):
    assert f"weir {command}" in weir(command, "--help").stdout.partition("Example:")[2]


def test_a_service_that_needs_a_key_is_told_apart_with_the_variable_that_names_one(monkeypatch):
    answer = httpx.Response(401, json={"error": {"message": "this service needs a key"}})
    monkeypatch.setattr(httpx, "request", lambda *_, **__: answer)
    result = weir("admin", "plan", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert result.stderr == "error: this service needs a key; `weir` reads the key from WEIR_API_KEY\n"


def test_paragraphs_of_the_help_wrap_only_at_the_width_of_the_terminal():
    help_lines = CliRunner().invoke(app, ["admin", "plan", "--help"], env={"COLUMNS": "80"}).stdout.splitlines()
    first = next(i for i, line in enumerate(help_lines) if "Every command of this group" in line)
    assert help_lines[first].rstrip().endswith("from")
    assert help_lines[first + 1].strip() == "WEIR_API_KEY; the key needs the scope admin."


def test_a_key_is_printed_once_and_only_its_digest_is_kept(tmp_path):
    file = tmp_path / "keys.yaml"
    created = weir("keys", "new", "--name", "alice", "--tenant", "acme", "--batch", "--file", file)
    key = created.stdout.strip()
    assert key.startswith("weir-")
    assert created.output.count(key) == 1
    assert key not in file.read_text()
    assert json.loads(weir("keys", "list", "--json", "--file", file).stdout) == [
        {
            "name": "alice",
            "tenant": "acme",
            "priority": "batch",
            "images_per_minute": None,
            "concurrent_images": None,
            "moderation": None,
            "admin": False,
        }
    ]
    assert "alice already" in refusal("keys", "new", "--name", "alice", "--file", file)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("{weir} --version > /dev/full", 1, "error: the output: No space left on device\n"),
        ("{weir} keys --help > /dev/full", 1, "error: the output: No space left on device\n"),
        ("{weir} --version >&-", 0, ""),
        ("{weir} plan --demand 24 --json >&- 2>&- <&-", 0, ""),
        ("{weir} --help | true", 0, ""),
    ],
)
def test_an_output_that_is_closed_or_full_gives_no_traceback(command, code, said):
    weir = f"{sys.executable} -m cli.main"
    done = subprocess.run(
        command.format(weir=weir), shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_the_terminal_lacks_are_escaped(encoding, tmp_path):
    path = tmp_path / "größe 🦊.csv"
    path.write_text("arrival_s,prompt\n0,a\n")
    command = [sys.executable, "-m", "cli.main", "check", str(path)]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\U0001f98a.csv: a trace, and nothing is wrong with it" in done.stdout


def test_a_full_memory_or_disk_is_one_sentence(monkeypatch, capfd):
    for error, sentence in (
        (MemoryError("Unable to allocate 873. TiB"), "error: the memory is full: Unable to allocate 873. TiB\n"),
        (OSError(28, "No space left on device", "runs/a.csv"), "error: runs/a.csv: No space left on device\n"),
    ):
        monkeypatch.setattr(main, "app", raising(error))
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == 1
        assert capfd.readouterr().err == sentence


def raising(error: BaseException):
    def run() -> None:
        raise error

    return run
