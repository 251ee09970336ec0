from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from store.store import Store
from tests.store.places import BadLine, Place, new_bucket, s3_server, use_s3


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Where a real S3 server listens."""
    with s3_server() as port:
        yield port


@pytest.fixture(params=["memory", "folder", "fsspec", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place for a shared store, of every kind."""
    if request.param == "s3":
        port = request.getfixturevalue("s3_port")
        use_s3(port, monkeypatch)
        return Place(new_bucket(port), tmp_path)
    kinds = {"memory": "memory://", "folder": f"file://{tmp_path}/", "fsspec": f"local://{tmp_path}/"}
    return Place(f"{kinds[request.param]}{uuid4().hex}", tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Place:
    """A place in memory, where any place will do."""
    return Place(f"memory://{uuid4().hex}", tmp_path)


@pytest.fixture
def line(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadLine]:
    """A line to the S3 server that can be made bad; what is opened from now on goes through it."""
    line = BadLine(s3_port)
    use_s3(line.port, monkeypatch)
    yield line
    line.close()


@pytest.fixture
def far(line: BadLine, s3_port: int, tmp_path: Path) -> Place:
    """A place at the end of that line."""
    return Place(new_bucket(s3_port), tmp_path)
