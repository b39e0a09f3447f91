"""Maintenance through the command line on a real Redis: statistics, purge, export and import."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import redis
import yaml
from typer.testing import CliRunner

from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.store import Record, SealedStore
from cli.main import app
from deploy.state import Service, StateFile
from tests.cache.conftest import PARTITION, SECRET, request, state
from traces.prompts import prompt_log
from weir.config import load_family
from weir.states import State, state_key

OTHER = PARTITION.replace("acme", "globex")


@pytest.fixture
def run(server: RedisServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEIR_CACHE_URL", server.url)
    monkeypatch.setenv("WEIR_CACHE_SECRET", SECRET.decode())
    return lambda *args: CliRunner().invoke(app, ["cache", *args])


@pytest.fixture
def filled(store: SealedStore) -> SealedStore:
    for partition in (PARTITION, OTHER):
        store.put(request("a", partition), [state(5), state(10)])
        store.remember(Record(partition, "a", "a dog", np.ones(2, np.float16), {5: 1, 10: 1}, 0.0))
    return store


def test_statistics_are_by_tenant(run, filled: SealedStore) -> None:
    found = json.loads(run("stats", "--json").stdout)
    assert found["entries"] == 2
    assert found["tenants"]["acme"]["states"] == 2
    assert found["bytes"] > 4 * 2048


def test_a_tenant_that_looks_like_markup_is_shown_as_it_is(run, store: SealedStore) -> None:
    store.put(request("a", PARTITION.replace("acme", "%5B/acme%5D")), [state(5)])
    result = run("stats")
    assert result.exit_code == 0
    assert "[/acme]: 0 entries, 1 states" in result.output


def test_a_purge_needs_a_tenant_or_all(run, filled: SealedStore) -> None:
    assert run("purge").exit_code == 2
    assert json.loads(run("purge", "--tenant", "acme", "--json").stdout) == {"deleted": 3}
    assert filled.get(state_key(PARTITION, "a", 5)) is None
    assert filled.get(state_key(OTHER, "a", 5)) is not None
    assert json.loads(run("purge", "--all", "--json").stdout) == {"deleted": 3}


def test_an_export_can_be_imported_elsewhere(run, filled: SealedStore, tmp_path) -> None:
    out = tmp_path / "cache.weir"
    assert run("export", str(out), "--tenant", "acme").exit_code == 0
    filled.purge()
    assert run("import", str(out)).exit_code == 0
    assert filled.get(state_key(PARTITION, "a", 10)) is not None
    assert filled.get(state_key(OTHER, "a", 10)) is None
    assert [r.entry for r in filled.records()] == ["a"]


def test_an_import_skips_values_with_invalid_tags(run, filled: SealedStore, tmp_path, monkeypatch) -> None:
    out = tmp_path / "cache.weir"
    run("export", str(out))
    monkeypatch.setenv("WEIR_CACHE_SECRET", "the secret of a stranger")
    filled.purge()
    result = run("import", str(out))
    assert "0 values imported, 6 refused" in result.output
    assert list(filled.backend.keys("weir:")) == []


def test_a_refused_import_reports_its_progress_and_continues_when_repeated(
    run, store: SealedStore, server: RedisServer, tmp_path
) -> None:
    out, mebibyte = tmp_path / "cache.weir", 2**20
    large = State(np.ones((4, 512, 256), np.float16), 5, 50, "DDIM", "heavy-1")
    for name in "abcdefghij":
        store.put(request(name), [large])
    run("export", str(out))
    store.purge()
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 6 * mebibyte)
        result = run("import", str(out))
        assert result.exit_code == 1
        taken = len(list(store.backend.keys("weir:")))
        assert 0 < taken < 10
        assert f"({taken} values were imported; repeat the import to continue)" in result.output
        admin.config_set("maxmemory", 0)
    assert "10 values imported, 0 refused" in run("import", str(out)).output


def test_a_truncated_export_imports_nothing(run, filled: SealedStore, tmp_path) -> None:
    out = tmp_path / "cache.weir"
    run("export", str(out))
    out.write_bytes(out.read_bytes()[:-1])
    filled.purge()
    result = run("import", str(out))
    assert result.exit_code == 2
    assert "ends in the middle" in result.output
    assert list(filled.backend.keys("weir:")) == []


@pytest.mark.parametrize("place", [".", "/"])
def test_an_export_needs_a_file(run, filled: SealedStore, place: str) -> None:
    result = run("export", place)
    assert result.exit_code == 2
    assert f"{place}: is a folder" in result.output


@pytest.mark.parametrize("content", [b"", b"something else", b"WEIRCACHE1\n\0\0\0\x05ab", b"WEIRCACHE1\n\0\0\0\x01a"])
def test_a_file_that_is_not_an_export_is_refused_by_name(run, tmp_path, content: bytes) -> None:
    path = tmp_path / "x.weir"
    path.write_bytes(content)
    result = run("import", str(path))
    assert result.exit_code == 2
    assert "x.weir" in result.output.replace("\n", "")


def test_without_a_server_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIR_CACHE_URL", raising=False)
    result = CliRunner().invoke(app, ["cache", "stats"])
    assert result.exit_code == 2
    assert "WEIR_CACHE_URL" in result.output
    result = CliRunner().invoke(app, ["cache", "stats", "--url", "redis://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "secret" in result.output
    monkeypatch.setenv("WEIR_CACHE_SECRET", SECRET.decode())
    result = CliRunner().invoke(app, ["cache", "stats", "--url", "redis://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "check that it runs" in result.output


def test_an_administrator_waits_longer_than_a_request(run, filled: SealedStore, server: RedisServer) -> None:
    """Counting reads by scans: they wait too."""
    with redis.Redis.from_url(server.url) as admin:
        admin.client_pause(600)
        assert run("stats").exit_code == 0


def test_the_running_services_store_is_used_and_the_environments_secret_takes_precedence(
    server: RedisServer, filled: SealedStore, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIR_CACHE_URL", raising=False)
    file = StateFile("weir")
    file.acquire()
    for own, mine in (("the service's own secret", SECRET.decode()), (SECRET.decode(), None)):
        file.write(Service("weir", 1, "", "", "", cache_url=server.url, cache_secret=own))
        if mine is None:
            monkeypatch.delenv("WEIR_CACHE_SECRET", raising=False)
        else:
            monkeypatch.setenv("WEIR_CACHE_SECRET", mine)
        assert CliRunner().invoke(app, ["cache", "export", "cache.weir"]).exit_code == 0
        assert "6 values imported, 0 refused" in CliRunner().invoke(app, ["cache", "import", "cache.weir"]).output
        assert (os.environ.get("WEIR_CACHE_URL"), os.environ.get("WEIR_CACHE_SECRET")) == (None, mine)
    file.release()


def test_certificates_are_named_for_tls(run, tmp_path) -> None:
    assert "there is no file" in run("stats", "--tls-ca", str(tmp_path / "ca.pem")).output
    (tmp_path / "ca.pem").write_text("")
    assert "needs a rediss:// URL" in run("stats", "--tls-ca", str(tmp_path / "ca.pem")).output


def test_a_short_secret_is_refused(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_CACHE_SECRET", "short")
    result = run("stats")
    assert result.exit_code == 2
    assert "at least 16" in result.output


def test_a_log_is_replayed_from_the_command_line(tmp_path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("Scores,Queries,Caches\n0.96,a dog,x\n0.2,no dog,\n0.7,a dog,x\n0.1,a cat,\n")
    result = CliRunner().invoke(app, ["cache", "replay-log", str(log), "--policy", "nirvana", "--json"])
    found = json.loads(result.stdout)
    assert found["requests"] == 4
    assert found["hit_ratio"] == 0.5
    assert found["shares"] == {"0": 0.5, "5": 0.25, "10": 0.0, "15": 0.0, "20": 0.0, "25": 0.25}
    assert found["steps_saved"] == 30 / 200


def test_thresholds_that_a_policy_does_not_use_are_refused(tmp_path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("Scores\n0.96\n0.2\n")
    args = ["cache", "replay-log", str(log), "--selector", "accuscale", "--policy"]
    for policy in ("nirvana", "pinecone", "vanilla"):
        result = CliRunner().invoke(app, [*args, policy])
        assert result.exit_code == 2
        assert f"--policy {policy} does not use --selector" in result.output
    assert CliRunner().invoke(app, [*args, "fewer-steps"]).exit_code == 0


@pytest.mark.parametrize("extra", [["--policy", "modm"], ["--selector", "deploy/profiles/weir-tiny-judged.json"]])
def test_thresholds_of_images_are_not_applied_to_a_log_of_similarities(tmp_path, extra: list[str]) -> None:
    log = tmp_path / "log.csv"
    log.write_text("Scores\n0.96\n0.2\n")
    result = CliRunner().invoke(app, ["cache", "replay-log", str(log), *extra])
    assert result.exit_code == 2
    assert "compares prompts with images" in result.output


def test_user_input_that_looks_like_markup_is_quoted_unchanged(tmp_path) -> None:
    log = tmp_path / "log[old].csv"
    log.write_text("Scores\n[/INST]\n")
    result = CliRunner().invoke(app, ["cache", "replay-log", str(log)])
    assert result.exit_code == 2
    assert f"{log}: line 2: the similarity is '[/INST]'" in result.output


def test_a_family_without_a_checker_is_profiled_by_a_model_that_is_named(tmp_path) -> None:
    family, out = tmp_path / "family.yaml", tmp_path / "profile.json"
    fields = load_family("deploy/families/weir-tiny.yaml").model_dump(mode="json")
    fields["clip"] = None
    fields["variants"]["light"]["discriminator"] = None
    fields["variants"]["heavy"]["steps"] = 10
    family.write_text(yaml.safe_dump(fields, sort_keys=False))
    args = ["cache", "profile", "--family", str(family), "--encoder", "words", "--count", "8", "--out", str(out)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert "not typical of family weir-tiny; give a log of its users' prompts" in result.output
    log = tmp_path / "log.txt"
    log.write_text("\n".join(prompt_log(np.random.default_rng(0), 160)))
    args += ["--prompts", str(log)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert "--clip openai/clip-vit-large-patch14, or --pick yuvalkirstain/PickScore_v1" in result.output
    result = CliRunner().invoke(app, [*args, "--judge", "pick", "--clip", "models/weir-tiny/clip"])
    assert result.exit_code == 2
    assert "name one" in result.output
    assert CliRunner().invoke(app, [*args, "--clip", "models/weir-tiny/clip"]).exit_code == 0
    found = json.loads(out.read_text())
    assert found["judge"] == "clip models/weir-tiny/clip"
    assert sum(row["pairs"] for row in found["measured"]) == 8


@pytest.mark.parametrize("command", ["profile", "fit-predictor"])
def test_invalid_options_are_refused_before_any_work(tmp_path, monkeypatch, command: str) -> None:
    """Neither without prompts nor without a place for the result."""
    monkeypatch.setattr("workers.models.family.Family.load", lambda *_, **__: pytest.fail("models are loaded"))
    monkeypatch.setattr("quality.suite.load_judge", lambda *_, **__: pytest.fail("measures are loaded"))
    monkeypatch.setattr("cache.replay.found_anything", lambda *_: pytest.fail("a log is replayed"))
    log, scores = tmp_path / "log.txt", tmp_path / "scores.csv"
    log.write_text("a dog\n")
    scores.write_text("Scores\n0.9\n")

    ending = ".json" if command == "profile" else ".safetensors"

    def run(log: Path, out: Path):
        given = ["--prompts", str(log)] if command == "profile" else [str(log), "--encoder", "words"]
        return CliRunner().invoke(app, ["cache", command, *given, "--out", str(out)])

    for result, said in (
        (run(log, tmp_path / "missing" / f"out{ending}"), "there is no folder"),
        (run(log, tmp_path), "is a folder"),
        (run(scores, tmp_path / f"out{ending}"), "prompts are needed"),
    ):
        assert result.exit_code == 2
        assert said in result.output


def test_eviction_policies_are_compared_on_the_prompts_of_a_log_with_a_plot(tmp_path) -> None:
    log, plot = tmp_path / "log.txt", tmp_path / "plots" / "saved.svg"
    log.write_text("\n".join(f"a picture of thing {i % 7} at dawn" for i in range(60)))
    args = ["cache", "replay-log", str(log), "--eviction", "lru", "--eviction", "weir", "--capacity", "10"]
    result = CliRunner().invoke(app, [*args, "--capacity", "100", "--plot", str(plot), "--json"])
    runs = json.loads(result.stdout)["runs"]
    assert [(r["eviction"], r["capacity"]) for r in runs] == [("lru", 10), ("lru", 100), ("weir", 10), ("weir", 100)]
    assert runs[1]["steps_saved"] >= runs[0]["steps_saved"]
    assert plot.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    "extra", [["--policy", "best"], ["--plot", "x.txt"], ["--plot", "/dev/null/x.svg"], ["--selector", "no-such"]]
)
def test_a_wrong_option_ends_in_code_2(tmp_path, extra: list[str]) -> None:
    log = tmp_path / "log.txt"
    log.write_text("a dog\n")
    assert CliRunner().invoke(app, ["cache", "replay-log", str(log), *extra]).exit_code == 2


def test_a_predictor_is_fitted_and_reports_whether_it_pays(tmp_path) -> None:
    log, out = tmp_path / "log.txt", tmp_path / "predictor.safetensors"
    log.write_text("\n".join(f"a picture of thing {i % 9} at dawn" if i % 3 else f"only {i} once" for i in range(400)))
    result = CliRunner().invoke(
        app, ["cache", "fit-predictor", str(log), "--out", str(out), "--encoder", "words", "--json"]
    )
    found = json.loads(result.stdout)
    assert 0.5 < found["recall"] <= 1
    assert found["pays"] in (True, False)
    assert out.exists()


def test_a_second_connection_sees_what_the_first_wrote(server: RedisServer, store: SealedStore) -> None:
    store.put(request(), [state(5)])
    assert SealedStore(RedisBackend(server.url, read_s=0.5), SECRET).get(state_key(PARTITION, "a", 5)) is not None
