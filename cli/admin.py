"""Look at and change a running service: ``weir admin …``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import grouped
from cli.terminal import KEY_REMEDY, JsonOption, error_exit, print_json, print_line, results
from weir.errors import ConfigError, Unauthorized

if TYPE_CHECKING:
    from deploy.api_client import ApiClient

app = typer.Typer(
    help="Look at and change a running service: its plan, policy, replicas, cache and adapters.", no_args_is_help=True
)


@dataclass(frozen=True, slots=True)
class Target:
    """Options that name the service."""

    service: Annotated[str | None, typer.Option("--service", help="Name of the service, if several are up.")] = None
    url: Annotated[str | None, typer.Option(help="Base URL.", show_default="the service that is up")] = None

    def client(self) -> ApiClient:
        """A client of its API, with the key of the environment."""
        from deploy.api_client import client_of

        return client_of(self.service, self.url, os.environ.get("WEIR_API_KEY"))

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer of a route below ``/v1/admin``; exits with a message when there is none."""
        with error_exit():
            try:
                answer: dict[str, Any] = self.client().call(method, f"/v1/admin/{path}", body)
            except Unauthorized as error:
                raise Unauthorized(f"{error.message}; {KEY_REMEDY}") from None
        return answer


ReplicaArgument = Annotated[str, typer.Argument(help="Id of the replica, as in `weir admin plan`.")]


@app.command()
@grouped
def plan(*, target: Target, as_json: JsonOption = False) -> None:
    """Show the plan in force, its reason, the replicas, the pin and the last actions.

    Every command of this group reads the API key, if the service needs one, from WEIR_API_KEY; the key needs the scope
    admin.

    Example: weir admin plan --json
    """
    _show(target.call("GET", "plan"), as_json)


@app.command()
@grouped
def pin(
    seconds: Annotated[
        float, typer.Option("--for", min=1, max=604_800, help="Seconds until the pin ends, at most a week.")
    ],
    replicas: Annotated[
        list[str] | None, typer.Option(help="VARIANT=NUMBER; repeat it for every variant of the chain.")
    ] = None,
    threshold: Annotated[list[str] | None, typer.Option(help="VARIANT=THRESHOLD; repeatable.")] = None,
    batch: Annotated[list[str] | None, typer.Option(help="VARIANT=SIZE, the largest batch; repeatable.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for those who look at the service.")] = "",
    *,
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Pin replicas, thresholds or batches for a time; without any of them, pin the whole plan in force.

    What is not pinned stays with the policy. The controller publishes the pinned plan within seconds.

    Example: weir admin pin --for 600 --threshold light=0.4 --reason "check the quality"
    """
    with error_exit():
        body: dict[str, Any] = {"for_s": seconds, "reason": reason}
        parts = (("replicas", replicas, int), ("thresholds", threshold, float), ("batch", batch, int))
        for name, given, number in parts:
            if given:
                body[name] = dict(_pair(name, it, number) for it in given)
    _show(target.call("PUT", "pin", body), as_json)


@app.command()
@grouped
def unpin(*, target: Target, as_json: JsonOption = False) -> None:
    """End the pin, so that the policy plans everything again.

    Example: weir admin unpin
    """
    _show(target.call("DELETE", "pin"), as_json)


@app.command()
@grouped
def policy(
    name: Annotated[str, typer.Argument(help="Name of a policy, as in controller.policy of a service file.")],
    *,
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Let another policy plan, until the next switch or restart. If the service lacks what it needs, nothing changes.

    Example: weir admin policy diffserve
    """
    _show(target.call("PUT", "policy", {"policy": name}), as_json)


@app.command()
@grouped
def scale(
    replicas: Annotated[int, typer.Argument(min=1, help="Number of replicas of the pool.")],
    *,
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Give the pool another number of replicas, without a restart of the others.

    Ray Serve starts new replicas where the cluster has room; replicas that are too many finish their images first.

    Example: weir admin scale 8
    """
    _show(target.call("PUT", "replicas", {"replicas": replicas}), as_json)


@app.command()
@grouped
def drain(
    replica: ReplicaArgument,
    force: Annotated[bool, typer.Option("--force", help="Drain even the last replica that takes work.")] = False,
    *,
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Drain a replica: it finishes what it has, gets nothing new, and plans leave it out.

    Example: weir admin drain k3v9x2ab
    """
    _show(target.call("PUT", f"replicas/{_quoted(replica)}/drain", {"force": force}), as_json)


@app.command("return")
@grouped
def return_(replica: ReplicaArgument, *, target: Target, as_json: JsonOption = False) -> None:
    """Return a drained replica to work.

    Example: weir admin return k3v9x2ab
    """
    _show(target.call("DELETE", f"replicas/{_quoted(replica)}/drain"), as_json)


@app.command("add-adapter")
@grouped
def add_adapter(
    name: Annotated[str, typer.Argument(help="Name for requests.")],
    file: Annotated[
        Path | None, typer.Option(help="Absolute path of a .safetensors file on the machines with replicas.")
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="Repository of the Hugging Face hub, with --weight-name.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the repository.", show_default="the latest")] = None,
    weight_name: Annotated[str | None, typer.Option(help="File of the repository.")] = None,
    *,
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Add a LoRA adapter, which requests may use from now on. Every replica checks that it fits the models.

    Example: weir admin add-adapter watercolour --file /weights/watercolour.safetensors
    """
    of_hub = {"repository": repository, "revision": revision, "weight_name": weight_name}
    body = {"name": name, "file": None if file is None else str(file), **of_hub}
    _show(target.call("POST", "adapters", body), as_json)


@app.command("remove-adapter")
@grouped
def remove_adapter(
    name: Annotated[str, typer.Argument(help="Name of the adapter, as in `weir admin plan`.")],
    *,
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Remove a LoRA adapter. Admitted requests are finished with it.

    Example: weir admin remove-adapter watercolour
    """
    _show(target.call("DELETE", f"adapters/{_quoted(name)}"), as_json)


@app.command()
@grouped
def cache(*, target: Target, as_json: JsonOption = False) -> None:
    """Show statistics of the running cache. `weir cache stats` shows its store.

    Example: weir admin cache --json
    """
    found = target.call("GET", "cache")
    if as_json:
        print_json(found)
        return
    for tenant, entries in found["tenants"].items():
        print_line(f": {entries} entries", bold=tenant)
    used, budget = found["bytes"] / 2**20, found["budget_bytes"] / 2**20
    print_line(f"{found['entries']} entries, {found['states']} states, {used:.1f} of {budget:.0f} MiB")
    resumed = sum(count for k, count in found["served"].items() if k != "0")
    print_line(f"since the start: {found['lookups']} lookups, {resumed} of them resumed")
    print_line(f"since the start: {found['inserted']} states inserted, {found['evicted']} evicted")


@app.command()
@grouped
def purge(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All tenants.")] = False,
    *,
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Delete what one tenant or all of them have cached, from the index of the running cache and from its store.

    Example: weir admin purge --tenant acme
    """
    with error_exit():
        check_tenant(tenant, everything)
        deleted = purge_through(target.client(), tenant)
    if as_json:
        print_json(deleted)
    else:
        print_line(f"deleted {deleted['entries']} entries of the index, and {deleted['values']} values of the store")


def check_tenant(tenant: str | None, everything: bool) -> None:
    """Checks that a purge names what it deletes.

    Raises:
        ConfigError: it names nothing, or two things.
    """
    if (tenant is None) != everything:
        raise ConfigError("give either --tenant NAME or --all")


def purge_through(client: Any, tenant: str | None) -> dict[str, Any]:
    """Purges the cache of a running service.

    Raises:
        WeirError: the service refuses it or does not answer.
    """
    found: dict[str, Any] = client.call("POST", "/v1/admin/cache/purge", {"tenant": tenant})
    return found


def _show(state: dict[str, Any], as_json: bool) -> None:
    from deploy.admin_view import described

    if as_json:
        print_json(state)
    else:
        results.print(described(state))


def _pair(name: str, given: str, number: type[int] | type[float]) -> tuple[str, float]:
    variant, _, value = given.partition("=")
    try:
        return variant, number(value)
    except ValueError:
        words = "a whole number" if number is int else "a number"
        raise ConfigError(
            f"--{name.removesuffix('s')} is {given!r}; write VARIANT=VALUE, where VALUE is {words}"
        ) from None


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
