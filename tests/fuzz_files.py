"""Fuzzes every kind of file that is read: ``python -m tests.fuzz_files [--minutes 60]``.

Valid files are damaged: bytes and words are removed, repeated, exchanged, or replaced by what breaks readers. Each has
to be read, or refused by an error of the project, within :data:`LONGEST_S`. ``tests/weir/test_damaged_files.py`` reads
some of each kind.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cache.policy.predictor import MatchPredictor
from cache.policy.selector import load_selector
from cache.replay import read_log, read_prompts
from cache.store.backend import MemoryBackend
from cache.store.maintenance import export_store, import_store
from cache.store.seal import seal
from cache.store.store import Record, SealedStore, entry_key
from deploy.check import check
from quality.calibration import Calibration
from simulator.arrivals import read_arrivals
from simulator.confidences import read_scores
from traces.generate import read_recipe
from traces.loader import load_trace
from traces.outcome import RequestOutcome, read_outcomes, save_outcomes
from traces.plan_log import PLANS, ObservedPlan, read_plans
from weir.approximation_levels import load_ladder
from weir.assets import ROOT
from weir.config import load_family, load_keys, load_service
from weir.errors import StateRefused, WeirError
from weir.plan import Plan
from weir.profiles import load_profile
from weir.prompt_levels import LevelHead
from weir.states import State
from workers.models.lora.adapter_header import check_header
from workers.models.source import Source

#: Processor time in which a damaged file has been read or refused, seconds; other work on the machine does not count.
LONGEST_S = 20
SECRET = b"the secret of a fuzzer"
PARTITION, ENTRY = "acme|model", "an-entry"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Attributes:
        name: name of the file.
        valid: returns the content of a valid file.
        read: reads the file; its errors are :class:`WeirError` or :class:`StateRefused`.
    """

    name: str
    valid: Callable[[], bytes]
    read: Callable[[Path], Any]


def _shipped(path: str) -> Callable[[], bytes]:
    return lambda: (ROOT / path).read_bytes()


def _written(write: Callable[[Path], object], name: str = "a") -> Callable[[], bytes]:
    """The content that a function writes to a file."""

    def content() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder, name))
            return Path(folder, name).read_bytes()

    return content


def _trace(lines: int = 30) -> bytes:
    return b"\n".join((ROOT / "traces/bursty.csv").read_bytes().splitlines()[:lines]) + b"\n"


def _outcomes(path: Path) -> None:
    row = RequestOutcome(0, 0.0, 0.0, 1.0, 200, "", "a star", path="heavy", confidence=0.5, image="images/000000.png")
    save_outcomes([row, row], path)


def _plans() -> bytes:
    plan = ObservedPlan(1.0, 3, {"light": 1, "heavy": 2}, (0.5,), "demand rose")
    return json.dumps([asdict(plan)] * 2).encode()


def _plan() -> bytes:
    plan = Plan.split(3, 1, 2, light_batch=4, heavy_batch=4, threshold=0.5)
    return json.dumps(plan.to_dict(), indent=1).encode()


def _state() -> bytes:
    return State(np.zeros((4, 8, 8), np.float16), 10, 50, "DDIM", "heavy").to_bytes()


def _store(record: bytes | None = None) -> SealedStore:
    """A store with an entry of one state; ``record`` replaces the body of the entry's record."""
    store = SealedStore(MemoryBackend(), SECRET)
    key = entry_key(PARTITION, ENTRY)
    store.remember(Record(PARTITION, ENTRY, "a star", np.ones(8, np.float16), {10: 100}, 1.0))
    store.backend.put({f"{key}:10": seal(f"{key}:10", _state(), SECRET)})
    if record is not None:
        store.backend.put({key: seal(key, record, SECRET)})
    return store


def _record() -> bytes:
    store, key = _store(), entry_key(PARTITION, ENTRY)
    value = store.backend.get(key)
    assert value is not None
    return store._unseal(key, value)[0]


def _predictor(path: Path) -> None:
    MatchPredictor(np.ones((2, 4)), np.ones(2), 2.0, 0.5, "words").save(path)


_KEYS = b"""keys:
- {name: alice, sha256: %b, tenant: acme, images_per_minute: 60, concurrent_images: 4}
- {name: root, sha256: %b, tenant: ops, admin: true, priority: batch}
""" % (b"a" * 64, b"b" * 64)
_EVALUATION = json.dumps(
    {
        "confidences": [0.1, 0.5, 0.9],
        "quality": {"discriminator": [1.0, 0.9, 0.8]},
        "heavy_by_steps": {"50": 1.0, "25": 0.9},
    }
).encode()

KINDS: dict[str, Kind] = {
    "a trace": Kind("a.csv", _trace, load_trace),
    "a trace's recipe": Kind("a.json", _shipped("traces/bursty.json"), read_recipe),
    "arrivals": Kind("a.csv", lambda: b"offset_ms,prompt_id\n1.0,3\n2.5,4\n", read_arrivals),
    "recorded confidences": Kind("a.txt", lambda: b"0.1\n0.2\n0.3\n0.4\n" * 4, read_scores),
    "outcomes of a replay": Kind("a.csv", _written(_outcomes), read_outcomes),
    "plans of a replay": Kind(PLANS, _plans, lambda path: read_plans(path.parent)),
    "a profile": Kind("a.json", _shipped("deploy/profiles/weir-tiny-three.json"), load_profile),
    "a ladder": Kind("a.json", _shipped("deploy/ladders/argus-sdxl.json"), load_ladder),
    "a service": Kind("configs/a.yaml", _shipped("deploy/configs/weir-tiny.yaml"), load_service),
    "a family": Kind("families/a.yaml", _shipped("deploy/families/weir-tiny.yaml"), load_family),
    "keys": Kind("a.yaml", lambda: _KEYS, load_keys),
    "a plan": Kind("a.json", _plan, check),
    "anything, to check": Kind("configs/a.yaml", _shipped("deploy/configs/weir-tiny.yaml"), check),
    "a profile, to check": Kind("a.json", _shipped("deploy/profiles/weir-tiny-three.json"), check),
    "a match predictor": Kind("a.safetensors", _written(_predictor), MatchPredictor.load),
    "a level head": Kind("a.safetensors", _shipped("models/weir-tiny/levels/head.safetensors"), LevelHead.load),
    "a LoRA adapter": Kind(
        "a.safetensors",
        _shipped("models/weir-tiny/adapters/noir.safetensors"),
        lambda path: check_header(Source("weir-tiny", "adapters.a", str(path)), 192),
    ),
    "a cache profile": Kind("a.json", _shipped("deploy/profiles/weir-tiny-cache.json"), load_selector),
    "an evaluation": Kind("a.json", lambda: _EVALUATION, Calibration.read),
    "a log of prompts": Kind("a.csv", lambda: b"prompt,similarity\na star,0.5\na box,0.25\n", read_log),
    "a list of prompts": Kind("a.txt", lambda: b"a star\na box\n", read_prompts),
    "an export of a cache": Kind(
        "a.bin",
        _written(lambda path: export_store(_store(), path)),
        lambda path: import_store(SealedStore(MemoryBackend(), SECRET), path),
    ),
    "a state": Kind("a", _state, lambda path: State.from_bytes(path.read_bytes())),
    "a record of the cache": Kind("a", _record, lambda path: list(_store(path.read_bytes()).records())),
}

#: What takes the place of a number, a word or a byte.
_MARKS = (
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"'",
    b'"',
    b"{",
    b"[",
    b"]",
    b",",
    b":",
    b"&a",
    b"*a",
    b"- ",
)
_NUMBERS = (b"0", b"-1", b"1e999", b"1e308", b"-0.0", b"NaN", b"Infinity", b".inf", b"0x10", b"9" * 400, b"9" * 5000)
_TEXTS = (b"null", b"true", b"~", b'""', b"[]", b"{}", b'"x"', b"!!python/none", b"\xc3\xa9", b"\xed\xa0\x80", b"=1+1")
_LONG = (b"[" * 5000, b"{a: " * 500, b"../../etc/passwd", b"/dev/null", b"1970-01-01", b"a" * 100_000)
_NASTY = st.sampled_from((*_MARKS, *_NUMBERS, *_TEXTS, *_LONG))
_DAMAGES = ("word", "byte", "cut", "repeat", "drop a line", "repeat a line", "exchange", "bit")
_WORDS = (b"0123456789.-+eE", b" \t\n", b"\"':,{}[]")


def _word_at(content: bytes, at: int) -> tuple[int, int]:
    """The bounds of the number, the name or the other run of like bytes around a place."""
    kind = next((it for it in _WORDS if content[at : at + 1] in [bytes([b]) for b in it]), None)

    def same(byte: int) -> bool:
        return byte in kind if kind is not None else not any(byte in it for it in _WORDS)

    begin = end = at
    while begin and same(content[begin - 1]):
        begin -= 1
    while end < len(content) and same(content[end]):
        end += 1
    return begin, end


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with up to four damages."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        begin, end = _word_at(content, at)
        match draw(
            st.sampled_from(["word", "byte", "cut", "repeat", "drop a line", "repeat a line", "exchange", "bit"])
        ):
            case "word":
                content = content[:begin] + draw(_NASTY) + content[end:]
            case "byte":
                content = content[:at] + draw(st.binary(max_size=4)) + content[at + draw(st.integers(0, 4)) :]
            case "cut":
                content = content[:at]
            case "repeat":
                content = content[:end] + content[begin:end] * draw(st.integers(1, 3)) + content[end:]
            case "drop a line":
                lines = content.split(b"\n")
                del lines[content.count(b"\n", 0, at)]
                content = b"\n".join(lines)
            case "repeat a line":
                lines = content.split(b"\n")
                lines.insert(0, lines[content.count(b"\n", 0, at)])
                content = b"\n".join(lines)
            case "exchange":
                other, rest = _word_at(content, draw(st.integers(0, max(0, len(content) - 1))))
                if end <= other:
                    content = (
                        content[:begin] + content[other:rest] + content[end:other] + content[begin:end] + content[rest:]
                    )
            case "bit":
                if content:
                    flipped = content[at] ^ (1 << draw(st.integers(0, 7)))
                    content = content[:at] + bytes([flipped]) + content[at + 1 :]
    return content


class Hung(Exception):
    """A reader took too long."""


@contextmanager
def _limited() -> Iterator[None]:
    """Raises Hung: the block took longer than :data:`LONGEST_S`."""

    def over(*_: object) -> None:
        raise Hung(f"not read within {LONGEST_S} s of processor time")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def place() -> Iterator[Path]:
    """A folder in which files of all kinds can be read: those that they name are beside it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "deploy")
        for kept in ("configs", "families"):
            (folder / kept).mkdir(parents=True)
        for kept in ("weir-tiny.yaml",):
            (folder / "families" / kept).write_bytes((ROOT / "deploy/families" / kept).read_bytes())
        (folder / "profiles").symlink_to(ROOT / "deploy/profiles")
        (folder.parent / "models").symlink_to(ROOT / "models")
        yield folder


def read_damaged(kind: Kind, content: bytes, folder: Path) -> None:
    """Reads a damaged file.

    Raises:
        Exception: anything but the errors that a reader may raise.
    """
    path = folder / kind.name
    path.write_bytes(content)
    with suppress(WeirError, StateRefused), _limited():
        kind.read(path)


def fuzz(name: str, examples: int, seed: int) -> None:
    """Reads ``examples`` damaged files of a kind.

    Raises:
        Exception: what a reader raised; hypothesis has printed the smallest file.
    """
    kind = KINDS[name]
    content = kind.valid()
    with place() as folder:

        @hypothesis.seed(seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(damaged(content))
        def check_one(content: bytes) -> None:
            read_damaged(kind, content, folder)

        check_one()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz every kind of file that is read.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable()
    until, seed, count = time.monotonic() + 60 * given.minutes, given.seed, 0
    problems: dict[str, BaseException] = {}
    while time.monotonic() < until:
        for name in given.kind or KINDS:
            if name not in problems:
                try:
                    fuzz(name, 100, seed)
                except Exception as error:
                    problems[name] = error
                    notes = "\n".join(getattr(error, "__notes__", ()))
                    sys.stdout.write(f"{name}: {type(error).__name__}: {str(error)[:500]}\n{notes[:2000]}\n")
                    sys.stdout.flush()
                count += 100
        seed += 1
    sys.stdout.write(
        f"{count} damaged files of {len(given.kind or KINDS)} kinds; {len(problems)} kinds had a problem\n"
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
