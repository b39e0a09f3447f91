"""Inspect, measure and maintain the approximate cache: ``weir cache …``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache.policy.selector import By
from cli.admin import check_tenant, purge_through
from cli.judge_options import JudgeOptions
from cli.option_groups import grouped
from cli.terminal import FamilyOption, JsonOption, error_exit, note, print_json, print_line, progress
from weir.assets import FAMILY
from weir.config import CacheConfig, FamilyConfig, load_family
from weir.errors import ConfigError, NotReady
from weir.files import check_place, file_format, make_folder, written_whole

if TYPE_CHECKING:
    from cache.policy.approaches import Approach
    from cache.profiling import CacheProfiling
    from cache.store.store import SealedStore

app = typer.Typer(help="Inspect, measure and maintain the approximate cache.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Options that name the store of a cache."""

    url: Annotated[
        str | None,
        typer.Option(help="Redis of the cache.", show_default="WEIR_CACHE_URL, else the service that is up"),
    ] = None
    secret_file: Annotated[
        Path | None,
        typer.Option("--secret-file", help="Secret of the tags.", show_default="WEIR_CACHE_SECRET, else the service's"),
    ] = None
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", help="Certificates that a rediss:// server is checked against.")
    ] = None

    def connect(self, *, writing: bool = False) -> SealedStore:
        """The store that the options, the environment or the service that is up name.

        Args:
            writing: whether the server has to accept writes.

        Raises:
            ConfigError: none of them names a store.
            NotReady: the store does not answer.
        """
        from cache.factory import URL, connected, secrets
        from cache.store.store import SealedStore

        url, secret = self.url, ""
        if url is None and URL not in os.environ and (service := _running()) is not None:
            url, secret = service.cache_url or None, service.cache_secret
        if url is None and URL not in os.environ:
            raise ConfigError(
                f"no service whose cache has a Redis is up, or several are; name the Redis: --url or {URL}"
            )
        named, certificates = (None if path is None else str(path) for path in (self.secret_file, self.tls_ca))
        config = CacheConfig(url=url, secret_file=named, tls_ca=certificates)
        backend = connected(config, patience_s=_REDIS_TIMEOUT_S)
        first, *retired = secrets(config, secret)  # what is missing here is known without asking the server
        _call_store(partial(backend.check, writing=writing))
        return SealedStore(backend, first, config.compression, retired)


#: Extensions of the plots that can be written.
PLOT_FORMATS = ("svg", "png", "pdf")
#: Time limit of one call of Redis, seconds.
_REDIS_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ApproachOptions:
    """Options of the decisions of a cache."""

    policy: Annotated[str, typer.Option(help="weir, nirvana, gptcache, pinecone, fewer-steps, ...")] = "weir"
    eviction: Annotated[
        list[str] | None,
        typer.Option(help="fifo, lru, lfu, lcbfu or weir; repeatable.", show_default="the policy's own"),
    ] = None
    capacity: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Largest number of states; repeatable.", show_default="all"),
    ] = None
    selector: Annotated[
        str | None,
        typer.Option(
            help="Thresholds: a published name or a cache profile, for policies without their own.",
            show_default="nirvana",
        ),
    ] = None

    def chosen(self) -> Approach:
        """The policy with its thresholds.

        Raises:
            ConfigError: there is no such policy or selector, or the policy has thresholds of its own.
        """
        from cache.policy.approaches import approach
        from cache.policy.selector import load_selector

        thresholds = load_selector(self.selector or "nirvana")
        found = approach(self.policy, thresholds)
        if self.selector is not None and (found.rules is None or found.rules.selector != thresholds):
            raise ConfigError(f"--policy {self.policy} does not use --selector; leave it out, or use --policy weir")
        return found

    def limits(self, chosen: Approach) -> list[tuple[str, int | None]]:
        """Every eviction policy with every capacity."""
        capacities: list[int | None] = list(self.capacity or []) or [None]
        return list(itertools.product(self.eviction or [chosen.eviction], capacities))


@app.command("replay-log")
@grouped
def replay_log(
    log: Annotated[Path, typer.Argument(help="CSV of similarities or prompts, or a file with one prompt per line.")],
    *,
    approach: ApproachOptions,
    encoder: Annotated[str, typer.Option(help="For prompts: words, family, or a text model.")] = "words",
    family: FamilyOption = FAMILY,
    plot: Annotated[Path | None, typer.Option(help="Image to write: .svg, .png or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay a log through the cache's decisions and show what the cache would have saved.

    A log of similarities uses those that the cache recorded. A log of prompts is looked up in an initially empty cache
    with an eviction policy and a capacity.

    Example: weir cache replay-log log.csv --policy nirvana --json
    """
    from cache.replay import read_log, replay_similarities

    with error_exit():
        if plot is not None:
            _check_plot(plot)
        chosen = approach.chosen()
        read = read_log(log)
        if read.similarities and not (approach.eviction or approach.capacity):
            runs = [{"policy": approach.policy, **replay_similarities(read.similarities, chosen).to_dict()}]
        elif not read.prompts:
            raise ConfigError(f"{log}: --eviction and --capacity need the prompts, and the log has none")
        else:
            runs = _replays(_encoder(encoder, family).encode(read.prompts), chosen, approach.limits(chosen))
        if plot is not None:
            _plot(runs, plot)
    if as_json:
        print_json(runs[0] if len(runs) == 1 else {"runs": runs})
        return
    for run in runs:
        about = ", ".join(str(run[key]) for key in ("policy", "eviction", "capacity") if run.get(key) is not None)
        shares = ", ".join(f"K={k}: {share:.1%}" for k, share in run["shares"].items())
        print_line(
            f": {run['requests']} requests, {run['hit_ratio']:.1%} hits, {run['steps_saved']:.1%} of the steps saved "
            f"({shares})",
            bold=about,
        )


def _encoder(name: str, family: Path) -> Any:
    """The prompt encoder that the options name."""
    from cache.encoder import WordEncoder, family_encoder

    if name == "words":
        return WordEncoder()
    return family_encoder(load_family(family), None if name == "family" else name)


def _replays(vectors: Any, approach: Any, limits: Iterable[tuple[str, int | None]]) -> list[dict[str, Any]]:
    """Replays the prompts in an initially empty cache, once for each eviction policy and capacity."""
    from cache.replay import replay_prompts

    runs = []
    for eviction, states in limits:
        with progress() as bar:
            task = bar.add_task(f"{eviction}, {states or 'all'} states", total=len(vectors))
            report = partial(_update, bar, task)
            found = replay_prompts(vectors, approach, eviction=eviction, capacity=states, progress=report)
        runs.append({"policy": approach.name, "eviction": eviction, "capacity": states, **found.to_dict()})
    return runs


def _update(bar: Any, task: Any, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _check_plot(path: Path) -> None:
    file_format(path, PLOT_FORMATS, "--plot")
    make_folder(path.parent)
    check_place(path)


def _plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Plots saved steps by capacity for each eviction policy, or the shares by K of a single run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    if len(runs) == 1:
        axes.bar(list(runs[0]["shares"]), [100 * s for s in runs[0]["shares"].values()])
        axes.set(xlabel="steps skipped (0: miss)", ylabel="% of requests")
    else:
        for name in dict.fromkeys(run["eviction"] for run in runs):
            of = [r for r in runs if r["eviction"] == name]
            axes.plot(
                [r["capacity"] or r["states"] for r in of], [100 * r["steps_saved"] for r in of], "o-", label=name
            )
        axes.set(xlabel="states that fit", ylabel="% of steps saved", xscale="log")
        axes.legend()
    try:
        with written_whole(path) as draft:
            figure.savefig(draft, format=file_format(path, PLOT_FORMATS, "--plot"))
    finally:
        pyplot.close(figure)


@dataclass(frozen=True, slots=True)
class ProfilingOptions:
    """Options of how a cache profile is measured; see :class:`cache.profiling.CacheProfiling`."""

    alpha: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the quality to keep.")] = 0.95
    count: Annotated[int, typer.Option(min=8, help="Pairs of prompts to generate.")] = 160
    by: Annotated[By, typer.Option(help="Criterion by which a cached run is used for a prompt.")] = By.SIMILARITY
    cached: Annotated[int, typer.Option(min=1, help="By confidence: prompts that fill the cache first.")] = 240
    candidates: Annotated[int, typer.Option(min=1, max=64, help="By confidence: neighbours to choose from.")] = 32
    stride: Annotated[int, typer.Option(min=1, help="Resumed runs take every n-th of the remaining steps.")] = 1
    accept: Annotated[
        float,
        typer.Option(min=0, max=1, help="By confidence: below it, a resumed image is generated from noise."),
    ] = 0.9
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1

    def how(self) -> CacheProfiling:
        """The options as the measurement takes them."""
        from cache.profiling import CacheProfiling

        given = asdict(self)
        del given["threads"]
        return CacheProfiling(**given)


@app.command()
@grouped
def profile(
    out: Annotated[Path, typer.Option(help="Profile file to write; name it in cache.selector.")],
    family: FamilyOption = FAMILY,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Log, one prompt per line.", show_default="scenes, for families of weir train"),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Text model, or words.", show_default="the family's")] = None,
    *,
    judging: JudgeOptions,
    profiling: ProfilingOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure quality by similarity and K, and derive the cache's thresholds from it.

    With --by confidence, the criterion is not the similarity of prompts, but the discriminator's confidence in the
    cached image for the new prompt.

    Example: weir cache profile --out deploy/profiles/weir-tiny-cache.json
    """
    from cache.encoder import family_encoder
    from cache.profiling import ProfileOrigin, write_profile
    from training.cache_profile import measure_family

    how = profiling.how()
    with error_exit():
        file_format(out, ["json"])
        check_place(out)
        config = load_family(family)
        log = _log(prompts, config, how)
        how.steps_to_resume_at(config.heavy.steps)
        judge, named = judging.load(config)
        encodes = family_encoder(config, encoder)
        with progress() as bar:
            task = bar.add_task("loading", total=None)

            def report(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done, total=total, description=what)

            found, selector, model = measure_family(
                config, log, encodes.encode, judge, how, threads=profiling.threads, report=report
            )
        write_profile(out, found, selector, ProfileOrigin(config.name, model, encodes.version, named, how.alpha))
    if as_json:
        print_json({**selector.to_dict(), "measured": found.bins()})
        return
    for row in found.bins():
        cells = ", ".join(f"K={k}: {ratio:.2f}" for k, ratio in row["ratio"].items())
        print_line(f"{how.by.value} {row['from']:.2f}…{row['to']:.2f} ({row['pairs']}): {cells}")
    for similarity, k in selector.levels:
        print_line(f"resume at {k} above {similarity:.3f}")
    note(f"written to {out}")


def _log(prompts: Path | None, config: FamilyConfig, how: CacheProfiling) -> list[str]:
    """The prompts of a file, or scenes for a family that was trained on them.

    Raises:
        ConfigError: there is no file, and the family was not trained on scenes.
    """
    import numpy as np

    from cache.replay import read_prompts
    from quality.suite import checker_folder
    from traces.prompts import prompt_log

    if prompts is not None:
        return read_prompts(prompts)
    if checker_folder(config) is None:  # a family with a checker was trained on prompts of scenes
        raise ConfigError(
            f"--prompts: the default prompts are scenes of `weir train`, which are not typical of family "
            f"{config.name}; give a log of its users' prompts, one per line"
        )
    return prompt_log(np.random.default_rng(how.seed), how.prompts)


@app.command("fit-predictor")
def fit_predictor(
    log: Annotated[Path, typer.Argument(help="Log of prompts in order of submission.")],
    out: Annotated[Path, typer.Option(help="Predictor file to write; name it in cache.predictor.")],
    selector: Annotated[str, typer.Option(help="Thresholds: a published name, or a cache profile.")] = "nirvana",
    encoder: Annotated[str, typer.Option(help="words, family, or a text model.")] = "family",
    family: FamilyOption = FAMILY,
    nu: Annotated[float, typer.Option(min=0.001, max=0.999, help="Share of hits that may be taken for misses.")] = 0.1,
    gamma: Annotated[float, typer.Option(min=0.001, help="Width of the kernel.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Fit the match predictor on the first half of a log, and measure on the second half whether it saves time.

    Example: weir cache fit-predictor log.txt --out predictor.safetensors
    """
    from cache.policy.approaches import approach
    from cache.policy.selector import load_selector
    from cache.replay import fit_predictor as fit
    from cache.replay import found_anything, read_prompts

    with error_exit():
        file_format(out, ["safetensors"])
        check_place(out)
        prompts = read_prompts(log)
        named = _encoder(encoder, family)
        vectors = named.encode(prompts)
        hits = found_anything(vectors, approach("weir", load_selector(selector)))
        fitted, found = fit(vectors, hits, named.version, nu=nu, gamma=gamma)
        fitted.save(out)
    if as_json:
        print_json(found)
        return
    print_line(
        f"precision {found['precision']:.3f}, recall {found['recall']:.3f}; {found['hits_lost']:.1%} of all requests "
        f"would lose a hit; a prediction takes {1e3 * found['prediction_s']:.2f} ms, "
        f"a search {1e3 * found['search_s']:.2f} ms: "
        f"the predictor {'saves' if found['pays'] else 'does not save'} time"
    )


@app.command()
@grouped
def stats(*, where: StoreOptions, as_json: JsonOption = False) -> None:
    """Show the number of entries, states and bytes in the store, by tenant.

    Example: weir cache stats --json
    """
    from cache.store.maintenance import summary

    with error_exit():
        store = where.connect()
        found = _call_store(lambda: summary(store))
    if as_json:
        print_json(found)
        return
    for tenant, counts in found["tenants"].items():
        print_line(f": {counts['entries']} entries, {counts['states']} states", bold=tenant)
    print_line(f"{found['entries']} entries, {found['states']} states, {found['bytes']} bytes of states")
    if found["store_bytes"] is None:
        note("the memory usage of Redis is unknown: this user may not run INFO")


@app.command()
@grouped
def purge(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All tenants.")] = False,
    *,
    where: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Delete the cached entries of one tenant or of all.

    Without --url, the service that is up does it, as with `weir admin purge`. If none is up or --url is given, only the
    store is purged: a service that uses this store keeps its index, and misses until it has noticed for every entry.

    Example: weir cache purge --tenant acme
    """
    from cache.policy.partition import Partitions
    from cache.store.store import PREFIX, ROOT
    from deploy.api_client import ApiClient

    with error_exit():
        check_tenant(tenant, everything)
        if where.url is None and (running := _running()) is not None:
            note(f"{running.name} is up and purges its cache")
            deleted = purge_through(ApiClient(running.url, os.environ.get("WEIR_API_KEY")), tenant)["values"]
        else:
            store = where.connect(writing=True)
            prefix = ROOT if tenant is None else PREFIX + Partitions.prefix(tenant)
            deleted = _call_store(lambda: store.purge(prefix))
    if as_json:
        print_json({"deleted": deleted})
    else:
        print_line(f"deleted {deleted} values")


@app.command("export")
@grouped
def export_(
    out: Annotated[Path, typer.Argument(help="File to write.")],
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    *,
    where: StoreOptions,
) -> None:
    """Write all cached entries to one file, sealed as in the store.

    Example: weir cache export cache.weir --tenant acme
    """
    from cache.store.maintenance import export_store

    with error_exit():
        store = where.connect()
        count = _call_store(lambda: export_store(store, out, tenant))
    print_line(f"{count} values are in {out}")


@app.command("import")
@grouped
def import_(
    source: Annotated[Path, typer.Argument(help="File that `weir cache export` wrote.")],
    *,
    where: StoreOptions,
) -> None:
    """Import an exported file. Values without a valid tag are refused. A service reads the values when it starts.

    Example: weir cache import cache.weir
    """
    from cache.store.maintenance import import_store

    with error_exit():
        store = where.connect(writing=True)
        taken, refused = _call_store(lambda: import_store(store, source))
    print_line(f"{taken} values imported, {refused} refused")


def _running() -> Any:
    """The service that is up; None where none is, or several are. What is then missing is reported by others."""
    from deploy.state import find
    from weir.errors import ServiceError

    with suppress(ServiceError):
        return find()[1]
    return None


def _call_store(work: Any) -> Any:
    from cache.store.backend import StoreFailed

    try:
        return work()
    except StoreFailed as error:
        raise NotReady(f"the cache's Redis failed: {error.message}; check that it runs and the URL is right") from None
