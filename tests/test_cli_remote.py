"""A shared store as a user meets it: `--store s3://…` wherever a store is named, and runs that move."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flows.runs import Executed, counting
from tests.store.places import SOON, free_port, new_bucket, s3_server, use_s3
from tests.test_cli import Done, Tf, made, refused, tf  # noqa: F401 (fixtures)

Machine = Callable[[str], Tf]


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def url(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    use_s3(s3_port, monkeypatch)
    return new_bucket(s3_port)


@pytest.fixture
def on(tf: Tf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:  # noqa: F811
    """`tf` on the machine of that name: with a cache of its own."""

    def machine(name: str) -> Tf:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return tf

    return machine


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Executed:
    return counting(monkeypatch)


def test_what_one_machine_edited_another_has_without_computing(
    on: Machine, url: str, executed: Executed, tmp_path: Path
) -> None:
    first = on("one").edit("run", "clip.mp4", "--prompt", "a red ball", "--store", url, "-o", "one.mp4", "--json")
    assert first.code == 0, first
    assert executed.passed > 0
    assert (first.json["store"], first.json["run"] is None) == (url, False)
    executed.clear()
    planned = on("two").edit("plan", "clip.mp4", "--prompt", "a red ball", "--store", url, "--json")
    assert [row["bytes"] for row in planned.json["stages"]] == [0] * 6
    assert not list((tmp_path / "two").rglob("objects/*")), "a plan fetches nothing"
    second = on("two").edit("run", "clip.mp4", "--prompt", "a red ball", "--store", url, "-o", "two.mp4", "--json")
    assert second.code == 0, second
    assert all(stage["hit"] for stage in second.json["stages"])
    assert (executed.names, executed.passed, executed.models) == ([], 0, 0)
    assert Path("one.mp4").read_bytes() == Path("two.mp4").read_bytes()
    third = on("three").edit("run", "clip.mp4", "--prompt", "a blue ball", "--store", url, "-o", "three.mp4", "--json")
    assert executed.names == ["edit_keyframes", "propagate_tokens"], third
    assert len(on("four")("list", "--store", url, "--json").json["artifacts"]) == 8
    key = first.json["stages"][-1]["key"]
    shown = on("four")("show", key[:12], "--store", url, "--json").json
    assert shown["path"] == f"{url}/objects/{shown['digest']}"
    assert on("four")("export", key[:12], "-o", "four.mp4", "--store", url).code == 0
    assert Path("four.mp4").exists()


def test_a_chunk_that_rotted_in_the_place_is_computed_again_in_the_same_run(
    on: Machine, url: str, executed: Executed
) -> None:
    from store.backends import open_backend

    first = on("one").edit("run", "clip.mp4", "--prompt", "a red ball", "--store", url, "-o", "one.mp4", "--json")
    key = first.json["stages"][-1]["key"]
    backend = open_backend(url)
    record = json.loads(backend.get(f"keys/propagate_tokens/{key}.json") or b"")
    name = next(f"objects/{record['digest']}/{name}" for name in record["files"] if "/c/" in name)
    data = bytearray(backend.get(name) or b"")
    data[len(data) // 2] ^= 1
    backend.put(name, bytes(data))
    executed.clear()
    second = on("two").edit("run", "clip.mp4", "--prompt", "a red ball", "--store", url, "-o", "two.mp4", "--json")
    assert second.code == 0, second
    assert "is lost or damaged" in second.err
    assert executed.names == ["propagate_tokens"]
    assert Path("one.mp4").read_bytes() == Path("two.mp4").read_bytes()
    healed = on("three").edit("run", "clip.mp4", "--prompt", "a red ball", "--store", url, "-o", "three.mp4", "--json")
    assert all(stage["hit"] for stage in healed.json["stages"])


def test_a_run_is_pushed_pulled_and_bundled(on: Machine, url: str, tmp_path: Path) -> None:
    one = on("one")
    run = one.edit("run", "clip.mp4", "--prompt", "a green ball", "-o", "one.mp4", "--json").json["run"]
    sent = one("push", run, "--to", url, "--json").json
    assert (sent["runs"], sent["artifacts"], sent["lost"], sent["to"]) == ([run], 6, [], url)
    said = one("push", "latest", "--to", url)
    assert "6 were there" in said.out
    two = on("two")
    came = two("pull", run, "--from", url, "--store", "colleague", "--json").json
    assert (came["artifacts"], came["bytes"]) == (6, sent["bytes"])
    assert two("export", run, "--bundle", "run.zip", "--store", "colleague").code == 0
    got = two("pull", "--from", "run.zip", "--store", "friend", "--json").json
    assert (got["runs"], got["artifacts"], got["bytes"]) == ([run], 6, sent["bytes"])
    again = two.edit("run", "clip.mp4", "--prompt", "a green ball", "--store", "friend", "-o", "again.mp4", "--json")
    assert all(stage["hit"] for stage in again.json["stages"])
    assert Path("again.mp4").read_bytes() == Path("one.mp4").read_bytes()


def test_doctor_says_what_store_it_is_and_whether_it_answers(
    on: Machine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(done: Done) -> dict[str, object]:
        return next(each for each in done.json["findings"] if each["what"] == "store")

    found = store(on("one")("doctor", "--store", url, "--json"))
    assert found["ok"] and f"{url} answers and can be written" in str(found["found"])
    monkeypatch.setattr("store.remote.Patience", lambda: SOON)
    use_s3(free_port(), monkeypatch)
    lost = store(on("one")("doctor", "--store", url, "--json"))
    assert not lost["ok"] and f"the store {url} failed while" in str(lost["found"])


BAD_PLACES = {
    "a secret": (["list", "--store", "s3://key:hush@bucket/x"], "holds a user or password"),
    "a query": (["list", "--store", "s3://bucket/x?token=hush"], "write the address alone"),
    "http": (["list", "--store", "http://127.0.0.1/x"], "no place that can be written"),
    "no kind": (["list", "--store", "nothing://x"], "of no known kind"),
    "no size": (["list", "--store", "memory://x"], "--cache-size 'much' is not a size"),
    "itself": (["push", "latest", "--to", "store"], "is the store itself"),
    "no source": (["pull"], "--from is empty"),
    "no bundle": (["pull", "--from", "none.zip"], "cannot read none.zip"),
    "no run": (["push", "20260101-000000-000000", "--to", "memory://y"], "no run '20260101-000000-000000' in"),
    "two things": (["export", "abc", "-o", "a.mp4", "--bundle", "a.zip"], "name one thing to write"),
    "nothing": (["export", "abc"], "name one thing to write"),
}


@pytest.mark.parametrize("how", BAD_PLACES)
def test_a_place_that_cannot_be_used_is_one_sentence(on: Machine, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, says = BAD_PLACES[how]
    if how == "no size":
        monkeypatch.setenv("TOKENFLOW_CACHE_SIZE", "much")
    done = on("one")(*arguments)
    refused(done, says)
    assert "hush" not in done.err


def test_a_store_of_another_machine_takes_no_folder_of_that_name(on: Machine, url: str) -> None:
    before = sorted(path.name for path in Path().iterdir())
    on("one")("list", "--store", url)
    assert [path.name for path in sorted(Path().iterdir()) if path.name not in before] == ["one"]
    shutil.rmtree("one")
