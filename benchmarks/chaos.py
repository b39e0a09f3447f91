"""Harms a real service under load, one part at a time, and keeps the books of every request.

    python -m benchmarks.chaos [--seed 1] [--faults light,heavy,…] [--rps 8] [--flips 4] [--json]

Starts a service of emulated replicas on this machine with a Redis and a live controller of its own, all on the loopback
interface. For each fault a load begins at Poisson times; some seconds later the part is harmed, and the load goes on
until the service is whole again. Clients send a request again, with the same idempotency key, until they have its
image. Exit code 1 when an image is lost or drawn twice, or when the service does not become whole.

Hung replicas and flips of roles are done without the live controller, which would plan against them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from testing.faults import FLIP_S, Fault, faults
from testing.request_ledger import Entry, RequestLedger
from testing.testbed import PROMPTS, Testbed, testbed

#: What does not heal within so long does not heal.
HEAL_S = 150.0
#: The load begins so long before the harm, or up to twice as long, and goes on for so long once the service is whole.
BEFORE_S, AFTER_S = 2.0, 3.0


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one fault. Times are seconds; the last two run from the beginning of the fault on.

    Attributes:
        at_s: since the load began.
        in_flight: requests at that time.
        others: see :class:`~testing.request_ledger.Account`.
        trouble_s: until the last attempt ended that brought no image; 0 when all did.
        whole_s: until everything ran as planned again; None when it never did.
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
    trouble_s: float
    whole_s: float | None

    @property
    def kept(self) -> bool:
        return self.lost == self.duplicated == 0 and self.whole_s is not None


async def harmed(
    bed: Testbed,
    fault: Fault,
    chance: random.Random,
    *,
    rps: float,
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
) -> Row:
    """One round: load, harm, load until the service is whole and a little longer."""
    ledger, stop = RequestLedger(bed.url, PROMPTS, chance), asyncio.Event()
    load = asyncio.create_task(ledger.run(rps, stop))
    await asyncio.sleep(chance.uniform(before_s, 2 * before_s))
    while not ledger.in_flight:
        await asyncio.sleep(0.01)
    at_s, waiting = 0.0, list[Entry]()

    def strike() -> None:
        nonlocal at_s, waiting
        at_s, waiting = ledger.now(), ledger.in_flight

    def harm() -> float | None:
        whole = fault.harm(bed, chance, strike)
        return ledger.now() - at_s if bed.wait(whole, HEAL_S) else None

    whole_s = await asyncio.to_thread(harm)
    await asyncio.sleep(after_s)
    stop.set()
    await load
    await ledger.ask_again(waiting)
    account = ledger.account()
    last_s = account.last_trouble_s
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
        trouble_s=max(0.0, last_s - at_s) if last_s is not None else 0.0,
        whole_s=whole_s,
    )


HEAD = (
    f"{'fault':<32} {'at s':>5} {'in flight':>9} {'sent':>5} {'lost':>5} {'twice':>5} {'5xx':>5} {'broken':>6} "
    f"{'refused':>7} {'slowest s':>9} {'trouble s':>9} {'whole s':>7}\n"
)


def line(row: Row) -> str:
    whole = "never" if row.whole_s is None else f"{row.whole_s:.1f}"
    return (
        f"{row.fault:<32} {row.at_s:5.1f} {row.in_flight:9} {row.sent:5} {row.lost:5} {row.duplicated:5} "
        f"{row.errors:5} {row.broken:6} {row.refused:7} {row.slowest_s:9.1f} {row.trouble_s:9.1f} {whole:>7}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Harms a service under load and keeps the books of every request.")
    parser.add_argument("--seed", type=int, default=1, help="of the load, the victims and the times")
    parser.add_argument("--faults", help="names, separated by commas; else all of them")
    parser.add_argument("--rps", type=float, default=8.0, help="requests per second")
    parser.add_argument("--flips", type=int, default=4, help=f"of all roles, {FLIP_S:g} s apart")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    known = faults(given.flips)
    names = given.faults.split(",") if given.faults else list(known)
    if unknown := set(names) - set(known):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; accepted: {', '.join(known)}")
    rows: list[Row] = []
    table = sys.stdout
    # Ray prints of each node that dies; the table is to stay one.
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder, testbed(Path(folder)) as bed:
        if not given.json:
            table.write(HEAD)
        for name in names:
            fault, chance = known[name], random.Random(f"{given.seed} {name}")
            with bed.without_controllers() if fault.alone else nullcontext():
                rows.append(asyncio.run(harmed(bed, fault, chance, rps=given.rps)))
            if not given.json:
                table.write(line(rows[-1]))
                table.flush()
    if given.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    sys.exit(0 if all(row.kept for row in rows) else 1)


if __name__ == "__main__":
    main()
