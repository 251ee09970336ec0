"""A run on a disk that is too small, fills up, limits files or may only be read: one sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def own_mounts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A prefix with which a command may mount small file systems that nobody else sees."""
    prefix = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    try:
        place = tmp_path_factory.mktemp("mount")
        trial = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
        subprocess.run([*prefix, *trial], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {getattr(error, 'stderr', None) or error}")
    return prefix


@pytest.fixture(scope="module")
def answers(own_mounts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Scenario → what was broken, and how many different things were seen."""
    done = subprocess.run(
        [*own_mounts, sys.executable, "-m", "tests.faults.disk_loop", tmp_path_factory.mktemp("disk")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {answer["scenario"]: answer for answer in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("scenario", ["too_small", "filled", "file_size_limit", "read_only"])
def test_a_disk_that_refuses_costs_one_sentence_and_nothing_that_was_committed(
    answers: dict[str, dict[str, Any]], scenario: str
) -> None:
    assert answers[scenario]["broken"] is None
    assert answers[scenario]["seen"] > 1
