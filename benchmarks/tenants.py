"""Measures what a modest tenant notices of a greedy one: the load balancer itself, on virtual time.

    python -m benchmarks.tenants [--seconds 300]

The modest tenant sends three requests a second, evenly. The greedy one comes after three seconds, and has a number of
heavy images in flight from then on. Without tenants all requests are of one, and the devices take them in the order of
their deadlines.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from benchmarks import command
from testing.two_tenants import Load, modest_tenant

LOADS = (None, Load(4), Load(4, 4), Load(16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="virtual seconds of each run")
    seconds = parser.parse_args().seconds
    columns = (
        "heavy replicas",
        "greedy images in flight",
        "tenants",
        "p50, s",
        "p99, s",
        "p99 beside alone",
        "refused",
    )
    table = Table(*columns)
    for heavy in (4, 2, 1):
        alone = modest_tenant(seconds, None, heavy=heavy)
        for load in LOADS:
            for apart in (True, False) if load is not None else (True,):
                seen = alone if load is None else modest_tenant(seconds, load, heavy=heavy, apart=apart)
                asked = "–" if load is None else f"{load.requests} × {load.images}"
                worse = "–" if load is None else f"{seen.p99_s / alone.p99_s - 1:+.1%}"
                row = (f"{seen.p50_s:.3f}", f"{seen.p99_s:.3f}", worse, str(seen.refused))
                table.add_row(str(heavy), asked, "two" if apart else "one", *row)
    Console(width=110).print(table)


if __name__ == "__main__":
    command(main)
