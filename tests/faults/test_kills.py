"""A run that was ended at any moment, in any way, goes on to the very end that an undisturbed one comes to.

Longer loops: TOKENFLOW_KILLS=200 TOKENFLOW_KILL_SEED=7 pytest tests/faults/test_kills.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("TOKENFLOW_KILLS", "10"))
SEED = int(os.environ.get("TOKENFLOW_KILL_SEED", "1"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 15 * KILLS)]


def ended(folder: Path, kills: int, *signals: str) -> dict[str, Any]:
    """The report of a loop; a broken promise is shown with its seed."""
    print(f"seed {SEED}, {kills} ends")
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.faults.kill_loop", folder, "--kills", str(kills), "--seed", str(SEED),
            "--signals", *signals,
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert sum(report["ended"].values()) == kills
    return report


def test_runs_killed_at_random_moments_come_to_the_undisturbed_end(tmp_path: Path) -> None:
    report = ended(tmp_path, KILLS, "KILL")
    assert report["finished"] >= KILLS // 10
    assert report["resumed"]["decode_frames"] > 0


def test_runs_that_are_interrupted_or_terminated_say_so_and_come_to_the_undisturbed_end(tmp_path: Path) -> None:
    report = ended(tmp_path, max(4, KILLS // 3), "INT", "TERM")
    assert {how.split()[0] for how in report["ended"]} == {"SIGINT", "SIGTERM"}
