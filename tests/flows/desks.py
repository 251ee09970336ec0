"""A desk for tests: what `tf up` starts, in folders of its own, and the `tf` that works at it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.flows.server import free_port, get

ROOT = Path(__file__).parents[2]
HELD = Path(__file__).parent / "held"  # makes processes stand still where a test says so


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class AtDesk:
    """A desk in `home`: the environment of its commands, and what it said when it went up."""

    home: Path
    environment: dict[str, str]
    said: dict[str, Any]

    @property
    def api(self) -> str:
        return str(self.said["api"])

    @property
    def store(self) -> Path:
        return Path(self.said["store"])

    def state(self) -> dict[str, Any]:
        """What the desk's file says now."""
        return dict(json.loads((self.home / "state" / "tokenflow" / "desk.json").read_text()))

    def tf(self, *arguments: object) -> Done:
        """Run a command to its end."""
        return tf(self.environment, *arguments)

    def begin(self, *arguments: object) -> subprocess.Popen[str]:
        """Begin a command."""
        return subprocess.Popen(
            command(*arguments), env=self.environment, cwd=self.home, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def holding(self, store: Path, stage: str) -> AbstractContextManager[None]:
        """Until the block ends, the desk's processes stand still before they call a part of `stage` done in `store`."""
        return holding(self.home, store, stage)

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """Status and answer of the API."""
        return post(self.api, path, **body)

    def flow_run(self, name: str) -> Any:
        return get(self.api, f"/flow_runs/{name}")

    def task_runs(self, run: str) -> list[Any]:
        """The task runs of a flow run, in the order in which they began."""
        found = self.post("/task_runs/filter", flow_runs={"id": {"any_": [run]}})[1]
        return sorted(found, key=lambda each: each["start_time"] or "")


def post(api: str, path: str, **body: Any) -> tuple[int, Any]:
    """Status and answer of an API; one that is too busy is asked again."""
    import httpx

    while (answer := httpx.post(f"{api}{path}", json=body, timeout=60)).status_code == 503:
        time.sleep(1)
    return answer.status_code, answer.json() if answer.content else None


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]


def tf(environment: dict[str, str], *arguments: object) -> Done:
    """Run a `tf` command to its end."""
    done = subprocess.run(
        command(*arguments), env=environment, cwd=environment["HOME"], capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def holding(home: Path, store: Path, stage: str) -> Iterator[None]:
    """Until the block ends, processes that are `held` in `home` stand still in `stage`, as at a desk."""
    hold = home / "holds" / uuid4().hex
    hold.write_text(f"^{re.escape(str(store))}/drafts/{stage}-[^/]+/parts")
    try:
        yield
    finally:
        hold.unlink()


def held(home: Path) -> dict[str, str]:
    """What the environment of a process needs, so that it can be made to stand still."""
    (home / "holds").mkdir(exist_ok=True)
    path = os.pathsep.join(filter(None, [str(HELD), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "TOKENFLOW_TEST_HOLDS": str(home / "holds")}


def environment_in(home: Path) -> dict[str, str]:
    """Folders of its own for everything, and no Prefect settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "TOKENFLOW_"))}
    names = {"XDG_STATE_HOME": "state", "XDG_CACHE_HOME": "cache", "PREFECT_HOME": "prefect"}
    return {**own, "HOME": str(home), **held(home), **{name: str(home / folder) for name, folder in names.items()}}


@contextmanager
def at_desk(home: Path) -> Iterator[AtDesk]:
    """A desk that is up until the block ends."""
    environment = environment_in(home)
    done = tf(environment, "up", "--port", free_port(), "--store", home / "store", "--json")
    assert done.code == 0, done.err
    try:
        yield AtDesk(home, environment, done.json)
    finally:
        ended = tf(environment, "down", "--now")
        assert ended.code == 0, ended.err
