"""What reuse is worth: one clip edited once, with a second prompt, and again unchanged; seconds per stage and ratios.

    python -m benchmarks.reuse [--video FILE] [--engine direct|auto] [-o RESULT.json]

Each of the three is a `tf run` in a process of its own, over one store that begins empty.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RUNS = {
    "first run": "a purple ball on grass",
    "second prompt": "a red ball on snow",
    "no-op": "a red ball on snow",
}


def main() -> None:
    """Run the three, print a table, write the result."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--video", type=Path, default=ROOT / "examples" / "ball.mp4")
    arguments.add_argument("--source-prompt", default="a red ball on grass")
    arguments.add_argument("--engine", default="direct")
    arguments.add_argument("-o", "--output", type=Path)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: measured(prompt, options, Path(folder)) for name, prompt in RUNS.items()}
    result = {"machine": machine(), "engine": options.engine, "video": options.video.name, "runs": runs}
    print(table(runs))
    print(json.dumps(result["machine"]))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def measured(prompt: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One `tf run`: seconds of the process, of the run, and of each stage."""
    command = [
        sys.executable, "-m", "cli", "run", str(options.video), "--prompt", prompt,
        "--source-prompt", options.source_prompt, "--engine", options.engine, "--store", str(folder / "store"),
        "-o", str(folder / "edit.mp4"), "--json",
    ]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    seconds = time.perf_counter() - began
    answer = json.loads(done.stdout)
    return {"process_seconds": round(seconds, 2), "run_seconds": answer["seconds"], "stages": answer["stages"]}


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Stages in rows, runs in columns; the last row is the ratio to the first run."""
    names = [stage["stage"] for stage in runs["first run"]["stages"]]
    lines = [f"{'seconds':20}" + "".join(f"{name:>16}" for name in runs)]
    for row, name in enumerate(names):
        cells = [run["stages"][row] for run in runs.values()]
        lines.append(
            f"{name:20}" + "".join(f"{'reused' if c['hit'] else format(c['seconds'], '.1f'):>16}" for c in cells)
        )
    for field in ("run_seconds", "process_seconds"):
        lines.append(f"{field:20}" + "".join(f"{run[field]:>16.1f}" for run in runs.values()))
    first = runs["first run"]["process_seconds"]
    lines.append(
        f"{'of the first run':20}" + "".join(f"{run['process_seconds'] / first:>16.2f}" for run in runs.values())
    )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where this was measured."""
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    packages = {name: version(name) for name in ("torch", "diffusers", "zarr", "prefect")}
    return {
        "cpu": model or platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "python": platform.python_version(), **packages,
    }  # fmt: skip


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


if __name__ == "__main__":
    main()
