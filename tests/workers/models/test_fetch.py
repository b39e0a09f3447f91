"""Files that a family needs from the hub, and the errors when they cannot be fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.toy_family import FAMILY
from weir.config import FamilyConfig, load_family
from workers.models.fetch import files_to_fetch, repositories

SDXL = [
    "README.md",
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors",
]
UNPINNED = ("flux", "stable-diffusion-3.5", "z-image")
PARTS = ["text_encoder", "tokenizer", "unet"]


def test_safetensors_of_the_named_set_are_fetched_and_plain_files_where_the_set_has_none():
    assert files_to_fetch(SDXL, "fp16", PARTS) == [
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]


def test_plain_files_are_fetched_without_a_named_set():
    files = files_to_fetch(SDXL, None, PARTS)
    assert "text_encoder/model.safetensors" in files
    assert "text_encoder/model.fp16.safetensors" not in files


def test_formats_that_can_run_code_are_not_fetched():
    assert not [file for file in files_to_fetch(SDXL, "fp16", PARTS) if file.endswith((".bin", ".onnx", ".pt", ".pkl"))]


def test_shared_repositories_are_fetched_once_and_local_folders_are_not_fetched(tmp_path):
    fields = {**FAMILY, "clip": str(tmp_path)}
    fields["light"] = {**FAMILY["light"], "unet": "fast/unet", "unet_file": "unet.safetensors", "revision": "abc"}
    named = [(it.key, it.repository, it.revision, it.file) for it in repositories(FamilyConfig.model_validate(fields))]
    assert named == [("pipeline", "nobody/nothing", None, None), ("light.unet", "fast/unet", "abc", "unet.safetensors")]


#: All but those whose files ask to pin a revision.
PINNED = sorted({*Path("deploy/families").glob("*.yaml")} - {Path(f"deploy/families/{it}.yaml") for it in UNPINNED})


@pytest.mark.parametrize("file", PINNED, ids=lambda file: file.stem)
def test_shipped_families_name_a_revision_for_every_repository(file):
    assert [it.repository for it in repositories(load_family(file)) if it.revision is None] == []


@pytest.fixture
def hub() -> Iterator[str]:
    """A fake hub with one repository, ``tiny/sdxl`` at commit c0ffee."""
    commit = "c0ffee" + "0" * 34
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    files = {
        "model_index.json": json.dumps(index).encode(),
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": b"\0" * 1000,
        "unet/diffusion_pytorch_model.bin": b"a pickle",
    }

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            name = path.partition("/resolve/")[2].partition("/")[2]
            if path.startswith("/api/models/tiny/sdxl/tree/"):
                tree = [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in files.items()]
                self.send(200, json.dumps(tree).encode())
            elif path.startswith("/api/models/tiny/sdxl"):
                siblings = [{"rfilename": n, "size": len(content)} for n, content in files.items()]
                self.send(200, json.dumps({"id": "tiny/sdxl", "sha": commit, "siblings": siblings}).encode())
            elif path.startswith("/tiny/sdxl/") and name in files:
                self.send(200, files[name], {"ETag": f'"{name}"', "X-Repo-Commit": commit})
            else:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetched(folder: Path, endpoint: str, repository: str) -> subprocess.CompletedProcess[str]:
    """Runs ``weir fetch`` in its own process, because the hub's library reads its settings when it is imported."""
    family = folder / "family.yaml"
    family.write_text(yaml.safe_dump({**FAMILY, "pipeline": repository}))
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "fetch", str(family)],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "COLUMNS": "500"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_family_is_fetched_into_the_cache_folder_and_progress_is_shown(hub, tmp_path):
    done = fetched(tmp_path, hub, "tiny/sdxl")
    assert done.returncode == 0, done.stderr
    assert "tiny/sdxl at c0ffee" in done.stderr
    assert "3 files" in done.stderr
    assert "100%" in done.stderr
    there = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/**/*") if path.is_file()}
    assert there == {"model_index.json", "config.json", "diffusion_pytorch_model.safetensors"}


def test_the_error_for_a_missing_repository_names_the_key(hub, tmp_path):
    done = fetched(tmp_path, hub, "tiny/nothing")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "pipeline: tiny/nothing" in done.stderr
    assert "check name and revision" in done.stderr


def test_the_error_without_a_network_names_a_workaround(tmp_path):
    done = fetched(tmp_path, "http://127.0.0.1:9", "tiny/sdxl")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "the hub does not answer" in done.stderr
    assert "copy its HF_HOME" in done.stderr
