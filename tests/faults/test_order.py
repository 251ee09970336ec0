"""Where one work writes two artifacts, no moment between their commits loses either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from store.draft import Draft
from tests.flows.runs import ALL, computed, counting, digests, edit, make_plan, small_clip
from tests.store.demo import stopped


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.mark.parametrize(("budget", "last"), [(1 << 30, "propagate_tokens"), (0, "match_tokens")])
@pytest.mark.parametrize("before", ["_move", "_publish"])
def test_a_run_that_ends_between_the_commits_of_one_work_does_not_do_it_again(
    budget: int, last: str, before: str, clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    step = getattr(Draft, before)

    def stopping(draft: Draft, record: Any) -> Any:
        order.append(record.stage)
        if record.stage == last:
            raise KeyboardInterrupt
        return step(draft, record)

    def plan() -> Any:
        return make_plan(clip, tiny_folder, tmp_path / "store", token_budget=budget)

    with monkeypatch.context() as patch, stopped():
        patch.setattr(Draft, before, stopping)
        edit(plan(), tmp_path)
    assert order == ALL[: ALL.index(last) + 1]
    assert {record.stage for record in plan().store.records()} == set(order[:-1])
    executed = counting(monkeypatch)
    result = edit(plan(), tmp_path)
    assert executed.names == ALL[ALL.index(last) + 1 :]
    assert set(computed(result)) <= {last, *executed.names}
    assert len(digests(result)) == len(ALL)
