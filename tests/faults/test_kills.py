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
KILLS = int(os.environ.get("TOKENFLOW_KILLS", "12"))
SEED = int(os.environ.get("TOKENFLOW_KILL_SEED", "1"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 15 * KILLS)]


def test_runs_ended_at_random_moments_come_to_the_undisturbed_end(tmp_path: Path) -> None:
    """By SIGKILL half of the time; by SIGINT and SIGTERM they say so as well."""
    print(f"seed {SEED}, {KILLS} ends")
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.faults.kill_loop", tmp_path, "--kills", str(KILLS), "--seed", str(SEED),
            "--signals", "KILL", "INT", "KILL", "TERM",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert sum(report["ended"].values()) == KILLS
    assert {how.split()[0] for how in report["ended"]} == {"SIGKILL", "SIGINT", "SIGTERM"}
    assert report["finished"] >= KILLS // 10
    assert report["resumed"]["decode_frames"] > 0
