"""Injects faults into a real service under load, one at a time, and accounts for every request.

    python -m benchmarks.chaos [--seed 1] [--faults light,heavy,…] [--rps 8] [--flips 4] [--json]
    python -m benchmarks.chaos --balancers 2 --plain [--runs 5]

It starts a service of emulated replicas on this machine with its own Redis and live controller, all on the loopback
interface. For each fault a load of Poisson arrivals begins; some seconds later the fault is injected, and the load
continues until the service has recovered. Clients repeat a request with the same idempotency key until they have its
image, or are plain: they send each request once and without a key. Several load balancers are behind an HAProxy.

The exit code is 1 when an image is lost or generated twice, or when the service does not recover. A request of a plain
client whose connection ended with the front door that was killed does not count as lost.

Hung replicas and role changes run without the live controller, which would plan against them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import command
from testing.faults import FLIP_S, Fault, faults
from testing.request_ledger import Entry, RequestLedger
from testing.testbed import PROMPTS, Testbed, testbed

#: Timeout of the recovery, seconds.
RECOVERY_S = 150.0
#: Least time of load before the fault (at most twice as long), and time of load after the recovery, seconds.
BEFORE_S, AFTER_S = 2.0, 3.0


@dataclass(frozen=True, slots=True)
class Row:
    """Result of one fault. Times are seconds; ``failing_s`` and ``recovered_s`` count from the injection.

    Fields that are not listed here are those of :class:`~testing.request_ledger.Account`.

    Attributes:
        at_s: time of the injection since the start of the load.
        in_flight: number of requests in flight at that time.
        failing_s: time until the end of the last failed attempt; 0 without failures.
        recovered_s: time until the service ran as planned again; None when it never did.
    """

    fault: str
    at_s: float
    in_flight: int
    sent: int
    lost: int
    duplicated: int
    errors: int
    broken: int
    refused: int
    slowest_s: float
    failing_s: float
    recovered_s: float | None
    #: Whether connections that ended are excused.
    front_door: bool

    @property
    def passed(self) -> bool:
        lost = self.lost - (self.broken if self.front_door else 0)
        return max(0, lost) == self.duplicated == 0 and self.recovered_s is not None


async def run_fault(
    bed: Testbed,
    fault: Fault,
    chance: random.Random,
    *,
    rps: float,
    plain: bool = False,
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
) -> Row:
    """Runs one round: load, fault, and load until ``after_s`` seconds after the recovery."""
    ledger, stop = RequestLedger(bed.url, PROMPTS, chance, plain=plain), asyncio.Event()
    load = asyncio.create_task(ledger.run(rps, stop))
    await asyncio.sleep(chance.uniform(before_s, 2 * before_s))
    while not ledger.in_flight:
        await asyncio.sleep(0.01)
    at_s, waiting = 0.0, list[Entry]()

    def on_inject() -> None:
        nonlocal at_s, waiting
        at_s, waiting = ledger.now(), ledger.in_flight

    def inject() -> float | None:
        recovered = fault.inject(bed, chance, on_inject)
        return ledger.now() - at_s if bed.wait(recovered, RECOVERY_S) else None

    recovered_s = await asyncio.to_thread(inject)
    await asyncio.sleep(after_s)
    stop.set()
    await load
    await ledger.resend(waiting)
    account = ledger.account()
    last_s = account.last_failure_s
    return Row(
        fault=fault.what,
        at_s=at_s,
        in_flight=len(waiting),
        sent=account.sent,
        lost=account.lost,
        duplicated=account.duplicated,
        errors=account.errors,
        broken=account.broken,
        refused=account.refused,
        slowest_s=account.slowest_s,
        failing_s=max(0.0, last_s - at_s) if last_s is not None else 0.0,
        recovered_s=recovered_s,
        front_door=fault.front_door and plain,
    )


HEAD = (
    f"{'fault':<32} {'at s':>5} {'in flight':>9} {'sent':>5} {'lost':>5} {'twice':>5} {'5xx':>5} {'broken':>6} "
    f"{'refused':>7} {'slowest s':>9} {'failing s':>9} {'recovered s':>11}\n"
)


def line(row: Row) -> str:
    recovered = "never" if row.recovered_s is None else f"{row.recovered_s:.1f}"
    return (
        f"{row.fault:<32} {row.at_s:5.1f} {row.in_flight:9} {row.sent:5} {row.lost:5} {row.duplicated:5} "
        f"{row.errors:5} {row.broken:6} {row.refused:7} {row.slowest_s:9.1f} {row.failing_s:9.1f} {recovered:>11}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Injects faults into a service under load and accounts for every request."
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the load, the victims and the times")
    parser.add_argument("--faults", help="names, separated by commas; default: all")
    parser.add_argument("--rps", type=float, default=8.0, help="requests per second")
    parser.add_argument("--flips", type=int, default=4, help=f"number of role changes, {FLIP_S:g} s apart")
    parser.add_argument("--balancers", type=int, default=1, help="number of load balancers")
    parser.add_argument("--plain", action="store_true", help="clients send each request once and without a key")
    parser.add_argument("--runs", type=int, default=1, help="runs of each fault, with seeds from --seed on")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    known = faults(given.flips)
    names = given.faults.split(",") if given.faults else list(known)
    if unknown := set(names) - set(known):
        parser.error(f"--faults: unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    rows: list[Row] = []
    table = sys.stdout
    # Ray prints a message for each dead node, which would interrupt the table.
    with (
        redirect_stdout(sys.stderr),
        tempfile.TemporaryDirectory() as folder,
        testbed(Path(folder), given.balancers) as bed,
    ):
        if not given.json:
            table.write(HEAD)
        for name, run in itertools.product(names, range(given.runs)):
            fault, chance = known[name], random.Random(f"{given.seed + run} {name}")
            with bed.controllers.stopped() if fault.alone else nullcontext():
                rows.append(asyncio.run(run_fault(bed, fault, chance, rps=given.rps, plain=given.plain)))
            if not given.json:
                table.write(line(rows[-1]))
                table.flush()
    if given.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    sys.exit(0 if all(row.passed for row in rows) else 1)


if __name__ == "__main__":
    command(main)
