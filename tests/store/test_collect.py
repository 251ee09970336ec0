"""What leaves, in which order, and what never does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from store import collect as collecting
from store import leases as leases_module
from store.artifact import Artifact
from store.collect import Limits, collect
from store.draft import Draft
from store.keys import ArtifactKey
from store.store import Store
from store.verify import verify
from tests.store.demo import DemoSpec, demo_blocks, demo_key, demo_schema, make_demo, stopped

DAY = 86400.0


def make(store: Store, number: int, stage: str = "demo_stage", seconds: float = 1.0, days: float = 0) -> Artifact:
    """An artifact of its own bytes that took so long, so many days ago."""
    key = ArtifactKey.of(stage, 1, DemoSpec(steps=number), {})
    artifact = make_demo(store, key, demo_schema().model_copy(update={"attrs": {"number": number}}))
    created = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - days * DAY))
    changed = artifact.record.model_copy(update={"seconds": seconds, "created": created}).sealed()
    store.layout.record(stage, key.hex).write_text(changed.to_json())
    return Artifact(artifact.path, changed)


def use(store: Store, days: float, *artifacts: Artifact) -> None:
    """A run that used artifacts so many days ago."""
    run = store.save_run({"stages": [{"stage": a.stage, "key": a.key} for a in artifacts]})
    then = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() - days * DAY))
    path = store.layout.runs / f"{run}.json"
    path.with_name(f"{then}{run[15:]}.json").write_text(
        json.dumps({**json.loads(path.read_text()), "id": then + run[15:]})
    )
    path.unlink()


def is_there(store: Store, *artifacts: Artifact) -> list[bool]:
    return [store.find(artifact.key) is not None for artifact in artifacts]


def test_nothing_leaves_without_a_limit(store: Store) -> None:
    artifacts = [make(store, n, days=1000) for n in range(3)]
    done = collect(store, Limits())
    assert (done.removed, done.orphans, done.leftovers, done.freed) == ((), (), (), 0)
    assert done.left == sum(store.objects().values())
    assert all(is_there(store, *artifacts))


def test_the_least_recently_used_leave_first_and_records_stay(store: Store) -> None:
    first, second, third = (make(store, n, days=30 - n) for n in range(3))
    use(store, 1, first)
    room = first.nbytes + third.nbytes
    done = collect(store, Limits(max_bytes=room))
    assert is_there(store, first, second, third) == [True, False, True]
    assert [each.keys for each in done.removed] == [(second.key,)]
    assert (done.freed, done.left, done.over) == (second.nbytes, room, 0)
    assert str(store.explain(second.record.recipe)) == "collected"
    assert len(list(store.records())) == 3
    collect(store, Limits(max_bytes=first.nbytes))
    assert is_there(store, first, second, third) == [True, False, False]


def test_a_lease_is_a_use_even_where_nothing_is_written(store: Store) -> None:
    first, second = (make(store, n, days=30 - n) for n in range(2))
    with store.lease([first.key]):
        pass
    collect(store, Limits(max_bytes=max(store.objects().values())))
    assert is_there(store, first, second) == [True, False]
    with store.lease(artifact.key for artifact in (first, second)):
        pass
    assert len(set(store.uses().values())) == 1, "of one moment, so that what they cost decides"


def test_of_one_run_the_cheapest_to_compute_again_per_byte_leave_first(store: Store) -> None:
    cheap, dear, middle = (make(store, n, seconds=s, days=9 - n) for n, s in enumerate((1, 100, 10)))
    use(store, 2, cheap, dear, middle)
    done = collect(store, Limits(max_bytes=dear.nbytes))
    assert [each.keys[0] for each in done.removed] == [cheap.key, middle.key]
    assert is_there(store, cheap, dear, middle) == [False, True, False]


def test_a_shared_object_is_as_dear_as_all_that_it_is_and_as_fresh_as_the_freshest(store: Store) -> None:
    one, other = make_demo(store), make_demo(store, demo_key(steps=51))
    alone = make(store, 1, days=5)
    use(store, 30, one)
    done = collect(store, Limits(max_bytes=one.nbytes))
    assert is_there(store, one, other, alone) == [True, True, False]
    done = collect(store, Limits(max_bytes=0))
    assert sorted(done.removed[0].keys) == sorted([one.key, other.key])


def test_age_counts_from_the_last_use(store: Store) -> None:
    old, used, fresh = make(store, 0, days=40), make(store, 1, days=40), make(store, 2, days=1)
    use(store, 3, used)
    collect(store, Limits(older_than=30 * DAY))
    assert is_there(store, old, used, fresh) == [False, True, True]


def test_edits_are_spared_where_that_is_wanted(store: Store) -> None:
    source = make(store, 0, "invert_frames", days=9)
    edits = [make(store, 1, "edit_keyframes", days=99), make(store, 2, "propagate_tokens", days=99)]
    done = collect(store, Limits(max_bytes=0, keep_edits=True))
    assert is_there(store, source, *edits) == [False, True, True]
    assert done.over == done.spared == done.left == sum(edit.nbytes for edit in edits)
    collect(store, Limits(older_than=DAY, keep_edits=False))
    assert is_there(store, *edits) == [False, False]


def test_pins_and_leases_stay_and_the_limit_says_that_it_was_missed(store: Store) -> None:
    pinned, leased, other = (make(store, n, days=9) for n in range(3))
    store.pin(pinned.key)
    with store.lease([leased.key]):
        done = collect(store, Limits(max_bytes=10, older_than=0))
    assert is_there(store, pinned, leased, other) == [True, True, False]
    assert (done.pinned, done.leased) == (pinned.nbytes, leased.nbytes)
    assert done.over == done.left - 10 == pinned.nbytes + leased.nbytes - 10
    store.unpin(pinned.key)
    assert store.pins() == set()
    collect(store, Limits(max_bytes=0))
    assert is_there(store, pinned, leased) == [False, False]


def test_a_rehearsal_says_the_same_and_does_nothing(store: Store) -> None:
    for number in range(3):
        make(store, number, days=9 - number)
    rehearsed = collect(store, Limits(max_bytes=500), dry_run=True)
    assert rehearsed.removed
    assert len(store.held()) == 3
    done = collect(store, Limits(max_bytes=500))
    assert done == rehearsed.model_copy(update={"dry_run": False})
    assert len(store.held()) == 3 - len(done.removed)


def test_orphans_leave_but_not_while_a_record_cannot_be_read(store: Store) -> None:
    artifact = make_demo(store)
    shutil.copytree(artifact.path, store.layout.object("ab" * 32))
    path = store.layout.record("demo_stage", demo_key().hex)
    text = path.read_text()
    path.write_text("{")
    done = collect(store, Limits(max_bytes=0))
    assert (done.orphans, done.removed) == ((), ())
    assert done.unreadable == (f"demo_stage/{demo_key().hex[:12]}",)
    assert len(store.held()) == 2
    path.write_text(text)
    done = collect(store, Limits())
    assert [each.digest for each in done.orphans] == ["ab" * 32]
    assert store.held() == {artifact.digest}


def test_an_object_on_its_way_into_the_store_is_no_orphan(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(draft: Draft, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, stopped():
        patch.setattr(Draft, "_publish", stop)
        make_demo(store)
    assert len(store.held()) == 1
    done = collect(store, Limits(max_bytes=0))
    assert (done.orphans, done.removed) == ((), ())
    with store.draft(demo_key(), demo_schema()) as draft:
        assert draft.missing() == []


def test_abandoned_drafts_leave_and_those_in_use_stay(store: Store) -> None:
    def interrupted(steps: int, days: float) -> Path:
        with stopped(), store.draft(demo_key(steps=steps), demo_schema()) as draft:
            draft.write(range(2), demo_blocks(range(2)))
            raise KeyboardInterrupt
        folder = store.layout.draft("demo_stage", demo_key(steps=steps).hex)
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (time.time() - days * DAY,) * 2)
        return folder

    old, leased, fresh = interrupted(1, 8), interrupted(2, 8), interrupted(3, 6)
    with store.lease([demo_key(steps=2).hex]):
        done = collect(store, Limits())
    assert [folder.exists() for folder in (old, leased, fresh)] == [False, True, True]
    assert [each.name for each in done.leftovers] == [f"drafts/{old.name}"]
    assert done.freed == done.leftovers[0].bytes > 0
    with store.draft(demo_key(steps=2), demo_schema()) as draft:
        collect(store, Limits(older_than=0))
        assert leased.exists() and not fresh.exists()
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
    assert store.find(demo_key(steps=2)) is not None


def test_a_killed_collection_is_finished_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_demo(store)

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, stopped():
        patch.setattr("store.store.remove_tree", stop)
        collect(store, Limits(max_bytes=0))
    assert store.find(demo_key()) is None
    assert not artifact.path.exists()  # gone as a whole, though nothing of it was deleted yet
    (left,) = store.layout.trash.iterdir()
    done = collect(store, Limits())
    assert [each.name for each in done.leftovers] == [f"trash/{left.name}"]
    assert not list(store.layout.trash.iterdir())
    assert verify(store).ok


def test_the_lease_of_a_dead_process_is_ignored_and_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_demo(store)
    with store.lease([artifact.key]):
        (path,) = store.layout.leases.iterdir()
        assert store.leases() == {artifact.key}
        shutil.copy(path, path.with_name("0" * 32 + ".json"))
        os.utime(path.with_name("0" * 32 + ".json"), (time.time() - 61,) * 2)
    assert store.leases() == set()
    done = collect(store, Limits(max_bytes=0))
    assert [each.name for each in done.leftovers] == [f"leases/{'0' * 32}.json"]
    assert len(done.removed) == 1


def test_a_lease_that_slept_is_live_while_its_process_lives_and_no_longer(store: Store) -> None:
    artifact = make_demo(store)
    program = """
        import signal, sys
        from store.store import Store
        with Store(sys.argv[1]).lease([sys.argv[2]]):
            print("held", flush=True)
            signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(store.root), artifact.key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            (path,) = store.layout.leases.iterdir()
            holder.send_signal(signal.SIGSTOP)  # renews nothing, as where the machine sleeps
            os.utime(path, (0, 0))
            said = json.loads(path.read_bytes())
            path.with_name("0" * 32 + ".json").write_text(json.dumps(said), encoding="ascii")  # nobody has it locked
            os.utime(path.with_name("0" * 32 + ".json"), (0, 0))
            done = collect(store, Limits(max_bytes=0))
            assert [each.name for each in done.leftovers] == [f"leases/{'0' * 32}.json"]
            assert not done.removed and store.leases() == {artifact.key}
        finally:
            holder.kill()
    done = collect(store, Limits(max_bytes=0))
    assert [each.name for each in done.leftovers] == [f"leases/{path.name}"]
    assert len(done.removed) == 1


def test_a_lease_is_renewed_while_it_is_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "SECONDS_BETWEEN_BEATS", 0.01)
    with store.lease(["ab" * 32]):
        (path,) = store.layout.leases.iterdir()
        os.utime(path, (0, 0))
        until = time.monotonic() + 30
        while not path.stat().st_mtime and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 60
        path.unlink()  # somebody took it for dead, as another host may after a sleep of this one
        while not store.leases() and time.monotonic() < until:
            time.sleep(0.01)
        assert store.leases() == {"ab" * 32}
    assert not list(store.layout.leases.iterdir())


def test_a_store_without_runs_or_objects_collects_nothing(tmp_path: Path) -> None:
    done = collect(Store(tmp_path / "new"), Limits(max_bytes=0, older_than=0))
    assert (done.freed, done.left) == (0, 0)
    assert collecting.last_uses(Store(tmp_path / "new")) == {}
