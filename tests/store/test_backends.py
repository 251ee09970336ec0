"""One contract for every place that keeps bytes by name, and what a bad line may do to it."""

import os
import threading
from pathlib import Path

import pytest

from store.backends import FsspecBackend, ObstoreBackend, OversizeError, Patience, open_backend, profile_of_aws
from store.errors import InputError, StorePlaceError
from tests.store.places import SOON, BadLine, Place, free_port, use_s3

# the contract


def test_what_was_put_is_there_until_it_is_deleted(place: Place) -> None:
    backend = place.backend()
    assert backend.get("keys/a.json") is None
    backend.put("keys/a.json", b"first")
    backend.put("keys/a.json", b"second")
    assert place.backend().get("keys/a.json") == b"second"
    backend.delete("keys/a.json")
    backend.delete("keys/a.json")
    assert backend.get("keys/a.json") is None
    assert backend.list("") == {}


def test_put_new_puts_once(place: Place) -> None:
    backend = place.backend()
    assert backend.put_new("keys/a.json", b"mine")
    assert not place.backend().put_new("keys/a.json", b"another's")
    assert backend.put_new("keys/a.json", b"mine"), "an answer that was lost is no loss of the name"
    assert backend.get("keys/a.json") == b"mine"


def test_a_folder_is_listed_with_sizes(place: Place) -> None:
    backend = place.backend()
    sizes = {
        "objects/a/x/c/0/0": 3,
        "objects/a/zarr.json": 2,
        "objects/ab/zarr.json": 4,
        "runs/one.json": 1,
        "ü b#%": 5,
    }
    for name, size in sizes.items():
        backend.put(name, b"." * size)
    assert backend.list("") == sizes
    assert backend.list("objects/a") == {"objects/a/x/c/0/0": 3, "objects/a/zarr.json": 2}
    assert backend.list("objects/nothing") == {}
    assert backend.first("runs") == "runs/one.json"
    assert backend.first("pins") is None


def test_a_large_file_goes_there_and_comes_back(place: Place, tmp_path: Path) -> None:
    backend, there, back = place.backend(), tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(11_000_000))
    backend.put("objects/a/c/0", there)
    assert backend.list("objects") == {"objects/a/c/0": 11_000_000}
    assert backend.get_to("objects/a/c/0", back, 11_000_000)
    assert back.read_bytes() == there.read_bytes()
    assert not backend.get_to("objects/a/c/1", tmp_path / "none", 10)
    assert not (tmp_path / "none").exists()


def test_more_bytes_than_promised_are_not_taken(place: Place, tmp_path: Path) -> None:
    place.backend().put("objects/a/c/0", b"x" * 1000)
    with pytest.raises(OversizeError, match="objects/a/c/0 is larger than the 999 bytes"):
        place.backend().get_to("objects/a/c/0", tmp_path / "file", 999)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_of_many_at_the_same_moment_one_wins(kind: str, tmp_path: Path) -> None:
    """Not promised for fsspec; a real S3 is exact, but the server of these tests is not."""
    place = Place(f"memory://{tmp_path.name}" if kind == "memory" else f"file://{tmp_path}/place", tmp_path)
    won: list[bytes] = []
    ready = threading.Barrier(16)

    def claim(content: bytes) -> None:
        backend = place.backend()
        ready.wait()
        if backend.put_new("locks/a.json", content):
            won.append(content)

    threads = [threading.Thread(target=claim, args=(b"%d" % number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [place.backend().get("locks/a.json")]


def test_a_put_that_fails_leaves_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FsspecBackend(f"local://{tmp_path}/place", SOON)
    backend.put("runs/a", b"before")
    monkeypatch.setattr(backend.files, "mv", lambda *given, **named: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(StorePlaceError, match=r"local://.*/place failed while writing runs/a \(permission denied\)"):
        backend.put("runs/a", b"after")
    assert backend.list("") == {"runs/a": 6}
    assert backend.get("runs/a") == b"before"
    assert [path.name for path in (tmp_path / "place" / "runs").iterdir()] == ["a"]


# addresses and credentials


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://key:secret@bucket/store", "holds a user or password"),
        ("s3://key@bucket/store", "holds a user or password"),
        ("az://container/store?sig=secret", "is followed by"),
        ("gs://bucket/store#secret", "is followed by"),
        ("https://example.org/store", "no place that can be written"),
        ("simplecache::s3://bucket/store", "no place that can be written"),
        ("nothing://bucket/store", "of no known kind"),
        ("file://store/folder", "three slashes"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_without_its_secret(url: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        open_backend(url)
    assert "secret" not in str(refused.value).replace("where secrets may be", "")


def test_keys_are_read_from_the_profile_where_the_environment_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = id\naws_secret_access_key = hush\n")
    (tmp_path / "config").write_text("[profile team]\nregion = eu-north-1\nendpoint_url = http://127.0.0.1:9\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert profile_of_aws() == {}
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert profile_of_aws() == {
        "access_key_id": "id", "secret_access_key": "hush", "region": "eu-north-1", "endpoint": "http://127.0.0.1:9",
    }  # fmt: skip
    assert isinstance(open_backend("s3://bucket/store", SOON), ObstoreBackend)
    monkeypatch.setenv("AWS_PROFILE", "teem")
    with pytest.raises(InputError, match=r"AWS_PROFILE is 'teem', and ~/\.aws has no such profile"):
        open_backend("s3://bucket/store")


def test_a_bucket_that_is_not_there_is_told(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(s3_port, monkeypatch)
    backend = open_backend("s3://no-such-bucket/store", SOON)
    for ask in (lambda: backend.put("format", b"1"), lambda: backend.first(""), lambda: backend.put_new("a", b"1")):
        with pytest.raises(StorePlaceError, match=r"s3://no-such-bucket/store failed .*there is no such bucket.*make"):
            ask()


# a bad line


@pytest.mark.parametrize("fault", ["drop", "busy", "lose"])
def test_what_passes_is_tried_again(far: Place, line: BadLine, fault: str, tmp_path: Path) -> None:
    backend = far.backend()
    (tmp_path / "file").write_bytes(b"content")
    for step in (
        lambda: backend.put("objects/a/c/0", tmp_path / "file"),
        lambda: backend.put_new("keys/a.json", b"record"),
        lambda: backend.get_to("objects/a/c/0", tmp_path / "back", 7),
        lambda: backend.list("objects") == {"objects/a/c/0": 7},
        lambda: backend.get("keys/a.json") == b"record",
    ):
        setattr(line, fault, 2)
        assert step() in (None, True)
        assert getattr(line, fault) == 0
    assert (tmp_path / "back").read_bytes() == b"content"


def test_an_answer_that_is_cut_off_is_fetched_again_whole(far: Place, line: BadLine, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    far.backend().put("objects/a/c/0", content)
    line.cut = 1
    assert far.backend().get_to("objects/a/c/0", tmp_path / "back", len(content))
    assert line.cut == 0
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("fault", ["drop", "busy", "delay", "gone"])
def test_what_does_not_pass_is_a_sentence(
    far: Place, line: BadLine, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "gone":
        use_s3(free_port(), monkeypatch)
    backend = open_backend(far.url, Patience(connect=0.2, read=0.2, give_up=0.3, pause=0.02))
    setattr(line, fault, 10**6)
    if fault == "delay":
        line.delay = 0.7
    for ask in (
        lambda: backend.get("keys/a.json"), lambda: backend.put("keys/a.json", b"record"),
        lambda: backend.put_new("keys/a.json", b"record"), lambda: backend.get_to("keys/a.json", tmp_path / "file", 9),
    ):  # fmt: skip
        with pytest.raises(StorePlaceError) as told:
            ask()
        sentence = str(told.value)
        assert sentence.startswith(f"the store {far.url} failed while "), sentence
        assert "keys/a.json (" in sentence and "run again" in sentence, sentence
        assert "\n" not in sentence and len(sentence) < 400
    assert not (tmp_path / "file").exists()
