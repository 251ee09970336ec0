"""A clip, a model, and a store in which one edit of them was made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.plan import Plan
from store.store import Store
from tests.flows.desks import AtDesk, at_desk
from tests.flows.runs import Executed, counting, edit, make_plan, small_clip
from tests.flows.server import configured, serving


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 frames of 32×32 pixels."""
    return small_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def _executed(patch: pytest.MonkeyPatch) -> Executed:
    return counting(patch)


@pytest.fixture
def executed(_executed: Executed) -> Executed:
    """What the test has executed so far."""
    _executed.clear()
    return _executed


@pytest.fixture(scope="module")
def edited(
    _executed: Executed, clip: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[Any, str]]:
    """A store with one edit in it, to be copied; and the digests of what is in it."""
    folder = tmp_path_factory.mktemp("edited")
    result = edit(make_plan(clip, tiny_folder, folder / "store"), folder)
    return folder / "store", {(u.node.stage, u.node.prompt): u.artifact.digest for u in result.uses}


@pytest.fixture
def store(edited: tuple[Path, dict[Any, str]], tmp_path: Path, executed: Executed) -> Store:
    """A store of its own with that edit in it."""
    shutil.copytree(edited[0], tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def plan(store: Store, clip: Path, tiny_folder: Path) -> Callable[..., Plan]:
    """Plans the same edit again, with what is given changed."""

    def make(video: Path = clip, model: Path = tiny_folder, **changed: Any) -> Plan:
        return make_plan(video, model, store, **changed)

    return make


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Prefect home of the tests' server: its database and log."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def prefect_server(prefect_home: Path) -> Iterator[str]:
    """URL of the API of a server that all tests share; nothing is configured for it."""
    with serving(prefect_home) as url:
        yield url


@pytest.fixture(scope="module")
def api(prefect_server: str, prefect_home: Path) -> Iterator[str]:
    """URL of the API of that server, for which Prefect is configured in this process while the module's tests run."""
    with configured(prefect_server, prefect_home) as url:
        yield url


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AtDesk]:
    """What `tf up` starts: a server, a worker, the deployments, a place for reports; all tests share it."""
    with at_desk(tmp_path_factory.mktemp("desk")) as desk:
        yield desk
