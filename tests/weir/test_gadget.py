"""No data from outside is unpickled: a check of the source, and code planted in every kind of file that is read."""

from __future__ import annotations

import ast
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cache.policy.predictor import MatchPredictor
from cache.policy.selector import load_selector
from cache.replay import read_log
from cache.store.maintenance import import_store
from cache.store.store import SealedStore
from simulator.arrivals import read_arrivals
from simulator.confidences import read_scores
from tests.gadget import FORMS, as_array, as_pickle
from traces.generate import read_recipe
from traces.loader import load_trace
from traces.outcome import read_outcomes
from weir.approximation_levels import load_ladder
from weir.config import load_family, load_keys, load_service
from weir.errors import StateRefused, WeirError
from weir.profiles import load_profile
from weir.states import State

ROOMS = (
    "adoption", "benchmarks", "cache", "controller", "deploy", "load_balancer", "quality", "simulator", "solvers",
    "traces", "training", "weir", "workers",
)  # fmt: skip
FORBIDDEN = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
#: Calls that unpickle by default, with the argument that prevents it.
DANGEROUS = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False", "numpy.load": "allow_pickle=False"}
#: Classes whose ``from_pretrained`` reads no weights.
WEIGHTLESS = ("Tokenizer", "Config", "reader", "Processor", "Scheduler")


def offences(source: str) -> list[str]:
    """Lines of a source file that could unpickle data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}
        if called in DANGEROUS and DANGEROUS[called] not in given:
            found.append(f"{node.lineno}: {called} without {DANGEROUS[called]}")
        if called.endswith((".read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load")):
            found.append(f"{node.lineno}: {called}")
        owner = called.removesuffix(".from_pretrained")
        if owner != called and not any(it in owner for it in WEIGHTLESS) and "use_safetensors=True" not in given:
            found.append(f"{node.lineno}: {called} without use_safetensors=True")
        if "trust_remote_code=True" in given or "allow_pickle=True" in given:
            found.append(f"{node.lineno}: {called} trusts what it reads")
    return found


def test_no_file_of_the_project_can_unpickle_data() -> None:
    found = {str(p): them for room in ROOMS for p in Path(room).rglob("*.py") if (them := offences(p.read_text()))}
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "CLIPModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=True)",
    ],
)
def test_the_check_finds_calls_that_unpickle(line: str) -> None:
    assert offences(line)


def test_the_planted_code_runs_when_it_is_unpickled(tmp_path: Path) -> None:
    with suppress(Exception):
        pickle.loads(as_pickle(tmp_path / "a"))  # noqa: S301
    with suppress(Exception):
        np.load(io.BytesIO(as_array(tmp_path / "b")), allow_pickle=True)
    with suppress(Exception):
        yaml.unsafe_load(FORMS["YAML"](tmp_path / "c"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


READERS: dict[str, Callable[[Path], Any]] = {
    "a trace": load_trace,
    "a trace's recipe": read_recipe,
    "a trace's prompts": lambda path: load_trace("traces/normal.csv", prompts=path),
    "arrivals": read_arrivals,
    "recorded confidences": read_scores,
    "outcomes of a replay": read_outcomes,
    "a profile": load_profile,
    "a ladder": load_ladder,
    "a service": load_service,
    "a family": load_family,
    "keys": load_keys,
    "a match predictor": MatchPredictor.load,
    "a cache profile": lambda path: load_selector(str(path)),
    "a log of prompts": read_log,
    "an export of a cache": lambda path: import_store(SealedStore(object(), b"x" * 16), path),  # type: ignore[arg-type]
    "a state": lambda path: State.from_bytes(path.read_bytes()),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", FORMS)
def test_code_planted_in_a_file_does_not_run(reader: str, form: str, tmp_path: Path) -> None:
    for suffix in (".csv", ".json", ".yaml", ".safetensors", ".txt"):
        file, mark = tmp_path / f"planted{suffix}", tmp_path / "it ran"
        file.write_bytes(FORMS[form](mark))
        # Readers of plain text may accept the content as text; all others refuse the file.
        with suppress(WeirError, StateRefused):
            READERS[reader](file)
        assert not mark.exists()
