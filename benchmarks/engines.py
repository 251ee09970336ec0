"""What Prefect costs a small run: the same `tf run` with no engine, with a server that is up, and with one of its own.

    python -m benchmarks.engines -o benchmarks/results/engines.json

Each run is a process of its own, on a store of its own, of eight frames and two steps with the embedded model; of
several rounds the fastest counts. The server's database is weighed before and after, for docs/scaling.md.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.sizes import ROOT
from flows.engine import DEFAULTS

CLIP = ROOT / "examples" / "ball.mp4"
WORK = ["--prompt", "a purple ball on grass", "--frames", "0:8", "--steps", "2", "--device", "cpu"]
SECONDS_TO_START = 120
TABLES = ("flow_run", "flow_run_state", "task_run", "task_run_state", "log", "artifact", "events", "event_resources")


def environment(home: Path, api: str | None = None) -> dict[str, str]:
    """No Prefect settings but our defaults, the home and the API."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "TOKENFLOW_"))}
    return {**own, **DEFAULTS, "PREFECT_HOME": str(home), **({"PREFECT_API_URL": api} if api else {})}


def seconds(engine: str, store: Path, settings: dict[str, str]) -> float:
    """What one `tf run` takes from beginning to end."""
    command = [sys.executable, str(ROOT / "cli.py"), "run", str(CLIP), *WORK, "--engine", engine, "--store", str(store)]
    began = time.perf_counter()
    subprocess.run([*command, "-o", str(store.parent / "out.mp4")], env=settings, check=True, capture_output=True)
    return time.perf_counter() - began


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """URL of the API of a Prefect server of our own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, deadline = f"http://127.0.0.1:{port}/api", time.monotonic() + SECONDS_TO_START
    try:
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
                break
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def weight(home: Path) -> dict[str, int]:
    """Bytes of the server's database, and rows of the tables that grow with runs."""
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        pages, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        rows = {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}
    return {"bytes": pages * size, **rows}


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds by engine, and what one run adds to the database."""
    taken: dict[str, list[float]] = {}
    fresh = iter(range(1000))

    def timed(name: str, engine: str, settings: dict[str, str], store: Path | None = None) -> None:
        chosen = store or folder / f"store-{next(fresh)}" / "store"
        chosen.parent.mkdir(exist_ok=True)
        taken.setdefault(name, []).append(seconds(engine, chosen, settings))
        if store is None:
            shutil.rmtree(chosen.parent)

    known = folder / "known" / "store"
    known.parent.mkdir()
    seconds("direct", known, environment(folder / "none"))
    for _ in range(rounds):
        timed("direct", "direct", environment(folder / "none"))
        timed("nothing to compute", "auto", environment(folder / "none"), known)
    timed("a server of its own, the first time on this machine", "auto", environment(folder / "own"))
    for _ in range(rounds):
        timed("a server of its own", "auto", environment(folder / "own"))
    with serving(folder / "up") as url:
        timed("a server that is up, first run", "auto", environment(folder / "up", url))
        before = weight(folder / "up")
        for _ in range(rounds):
            timed("a server that is up", "auto", environment(folder / "up", url))
        time.sleep(10)  # events and logs are written behind
        after = weight(folder / "up")
    grown = {name: round((after[name] - before[name]) / rounds) for name in after}
    return {"seconds": {name: min(values) for name, values in taken.items()}, "database_growth_per_run": grown}


def main(
    output: Annotated[Path, typer.Option("-o", "--output")],
    rounds: int = 3,
) -> None:
    """Measure, print a table, write JSON."""
    with tempfile.TemporaryDirectory() as folder:
        said = measure(Path(folder), rounds)
    said["machine"] = {"cores": os.cpu_count(), "python": sys.version.split()[0]}
    said["command"] = f"python -m benchmarks.engines -o {output} --rounds {rounds}"
    output.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    base = said["seconds"]["direct"]
    print("| the same small run | s | more than direct |\n|---|---:|---:|")
    for name, value in said["seconds"].items():
        print(f"| {name} | {value:.1f} | {value - base:+.1f} |")
    print(f"\none run adds to the database: {said['database_growth_per_run']}")


if __name__ == "__main__":
    typer.run(main)
