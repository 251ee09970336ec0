"""Processes that share a store: one computes, the others wait and are told; nobody waits for anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from store.store import Store
from store.verify import verify
from tests.store.demo import demo_key, make_demo

ROOT = Path(__file__).parents[2]


def played(scene: str, store: Store) -> list[dict[str, Any]]:
    """What the processes of a scene of `tests.store.crowd` answer."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.crowd", scene, str(store.root)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the artifact, when one process makes it."""
    return make_demo_without_attrs(Store(tmp_path_factory.mktemp("alone") / "store"))


def make_demo_without_attrs(store: Store) -> str:
    from tests.store.demo import demo_blocks, demo_schema

    with store.draft(demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
    return draft.artifact.digest


def test_of_eight_processes_that_want_one_artifact_one_computes_and_seven_wait_and_reuse(
    store: Store, digest: str
) -> None:
    answers = played("eight_want_one", store)
    assert sorted(answer["computed"] for answer in answers) == [0] * 7 + [3]
    assert {answer["digest"] for answer in answers} == {digest}
    computing = next(answer for answer in answers if answer["computed"])
    assert computing["said"] == []
    for answer in answers:
        if answer is not computing:
            (said,) = answer["said"]
            who = (f"process {computing['pid']}", "another process")  # it may not have said yet that it has begun
            assert said in [f"waiting for {name}, which computes {demo_key()}" for name in who]
    assert [path.suffix for path in store.layout.drafts.iterdir()] == [".lock"]


def test_different_artifacts_do_not_wait_for_each_other(store: Store) -> None:
    first, second = played("one_of_each", store)
    assert (first["computed"], second["computed"]) == (3, 3)
    assert first["said"] == second["said"] == []


def test_the_lock_of_a_killed_process_is_taken_over_and_its_finished_part_kept(store: Store, digest: str) -> None:
    (answer,) = played("killed_holder", store)
    assert (answer["computed"], answer["digest"]) == (2, digest)
    assert answer["said"] == [f"waiting for process {answer['killed']}, which computes {demo_key()}"]


def test_readers_are_not_disturbed_by_collections(store: Store) -> None:
    make_demo(store)
    answers = {answer["who"]: answer for answer in played("readers_beside_gc", store)}
    assert answers["leased"]["whole"] == answers["leased"]["of"] > 0
    assert answers["bare"]["wrong"] == 0
    assert answers["gc"]["removed"] > 0 and answers["gc"]["codes"] == ["0"]
    assert verify(store).ok
    assert not list(store.layout.trash.iterdir()) or not store.held()


def test_a_member_of_the_crowd_that_fails_ends_the_others_and_says_why(store: Store) -> None:
    with pytest.raises(AssertionError, match=r"'nothing' is not a whole key(.|\n)*failed"):
        played("fails", store)
