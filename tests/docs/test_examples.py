"""Tests of the code blocks of the documentation: they run in order on a real service.

A block that cannot run here stands under a comment ``<!-- not run: why -->``. Everything runs in a folder of its own
with the repository's files in it, on another port than the documented one; the documents share one service, so that
``weir up`` after the first and ``weir down`` before the last of them do nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PORT = "8000"
SHIM = """#!/bin/sh
case "$1" in
  up) [ -e .weir/weir-tiny.json ] && exit 0 ;;
  down) exit 0 ;;
esac
exec {python} -m cli.main "$@"
"""


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    runs: bool


def blocks(document: Path) -> list[Block]:
    found, reason = [], ""
    for token in MarkdownIt().parse(document.read_text()):
        if token.type == "html_block" and "not run:" in token.content:
            reason = token.content
        elif token.type == "fence":
            found.append(Block(token.info, token.content, (token.map or [0])[0] + 1, not reason))
            reason = ""
        elif token.level == 0 and token.nesting >= 0:
            reason = ""
    return found


#: The API reference is generated, and ``tests/load_balancer/http/test_reference.py`` runs its examples.
ELSEWHERE = ("api.md",)
RUN = {d: [b for b in blocks(d) if b.runs and b.language in ("sh", "python")] for d in DOCUMENTS}
WITH_EXAMPLES = [
    pytest.param(d, id=d.name, marks=[pytest.mark.ray] if any("weir up" in b.text for b in run) else [])
    for d, run in RUN.items()
    if d.name not in ELSEWHERE and run
]


@dataclass(frozen=True)
class Reader:
    """Runs the commands of a document."""

    folder: Path
    port: str

    def runs(self, command: list[str], text: str, where: str) -> None:
        text = text.replace(f":{PORT}", f":{self.port}")
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
        done = subprocess.run(
            [*command, text], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, f"{where}:\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    for name in ("traces", "models"):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "deploy", folder / "deploy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = folder / "deploy" / "configs" / "weir-tiny.yaml"
    config.write_text(config.read_text().replace(f"port: {PORT}", f"port: {port}"))
    shim = folder / "bin" / "weir"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=sys.executable))
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    it = Reader(folder, port)
    yield it
    if (folder / ".weir" / "weir-tiny.json").exists():
        it.runs([sys.executable, "-m", "cli.main"], "down", "at the end")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", WITH_EXAMPLES)
def test_the_commands_of_a_document_work(document: Path, reader: Reader) -> None:
    for block in RUN[document]:
        if block.language == "sh":
            reader.runs(["bash", "-euo", "pipefail", "-c"], block.text, f"{document.name}, line {block.line}")
    python = "\n".join(b.text for b in RUN[document] if b.language == "python")
    if python:
        reader.runs([sys.executable, "-c"], python, f"{document.name}, Python")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_every_link_to_a_file_is_valid(document: Path) -> None:
    links = [
        str(child.attrs.get("href") or child.attrs.get("src"))
        for token in MarkdownIt().parse(document.read_text())
        for child in token.children or []
        if child.type in ("link_open", "image")
    ]
    files = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [f for f in files if not (document.parent / f).exists()] == []
