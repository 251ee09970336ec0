"""What a run would do, and why (`tf plan`); what made two artifacts or two runs differ (`tf explain`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from store.errors import InputError
from store.store import Store, own_differences
from store.summaries import Summary
from store.verify import record_file

if TYPE_CHECKING:
    from .plan import Plan


def explain_plan(plan: Plan) -> list[dict[str, Any]]:
    """Per artifact: found or not, bytes it would write before compression, and why it is not there.

    What is not there and not needed either says so, and writes nothing.
    """
    rows = []
    to_compute = {node.key.hex for node in plan.to_compute()}
    for node in plan.nodes:
        why = plan.store.explain(node.key, plan.keys)
        needed = node.key.hex in to_compute
        rows.append(
            {
                "stage": node.stage,
                "key": node.key.hex,
                "hit": why is None,
                "compute": needed,
                "bytes": plan.needed_bytes(node) if needed else 0,
                "why": None if why is None else str(why) if needed else f"{why}; not needed for this run",
            }
        )
    return rows


@dataclass(frozen=True)
class Difference:
    """What differs in one stage between two artifacts or two runs: `invert_frames`, "num_steps 50 → 100"."""

    stage: str
    what: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.what}; re-runs {self.stage.split('_')[0]} onward"


def explain_keys(store: Store, first: str, second: str | None = None) -> dict[str, Any]:
    """What made two artifacts differ, the cause and not what follows from it; `second` is the nearest one if not given.

    raises   InputError for keys of different stages, or where there is nothing to compare with
    """
    known = {summary.hex: summary for summary in store.summaries()}
    old, new = _summary(store, known, first), _summary(store, known, second) if second else None
    if new is None:
        old, new = _nearest(known, old), old
    if old.stage != new.stage:
        raise InputError(
            f"{old.stage}/{old.hex[:12]} and {new.stage}/{new.hex[:12]} are of two stages; give two of one"
        )
    found = differences(old, new, known)
    return {
        "stage": new.stage, "from": old.hex, "to": new.hex, "there": new.digest in store.held(),
        "differences": [{"stage": each.stage, "what": each.what} for each in found],
        "sentences": list(map(str, found)) or ["the same recipe"],
    }  # fmt: skip


def explain_run(store: Store, name: str) -> dict[str, Any]:
    """What each stage of a run was, reused or computed, and why, against the earlier run that shares most with it.

    raises   InputError where there is no such run
    """
    runs = store.runs()
    if name == "latest" and not runs:
        raise InputError(f"there is no run in {store.place} yet; tf run VIDEO --prompt TEXT makes one")
    run = runs[0] if name == "latest" else store.load_run(name)
    known = {summary.hex: summary for summary in store.summaries()}
    earlier = [other for other in runs if other["id"] < run["id"] and "stages" in other]
    keys = _keys(run)
    near = max(earlier, key=lambda other: (len(keys & _keys(other)), other["id"]), default=None)
    before = {key for other in earlier for key in _keys(other)}
    stages = [
        {"stage": row["stage"], "key": row["key"], "hit": row["hit"], "why": _why(row, near, before, known)}
        for row in run["stages"]
    ]
    return {"run": run["id"], "against": near["id"] if near else None, "stages": stages}


def differences(old: Summary, new: Summary, known: Mapping[str, Summary]) -> list[Difference]:
    """What differs in the recipes of two artifacts and of all they were made from, in DAG order, each once."""
    found: dict[Difference, None] = {}
    seen: set[tuple[str, str]] = set()

    def compare(before: Summary, after: Summary) -> None:
        if (before.hex, after.hex) in seen or before.hex == after.hex:
            return
        seen.add((before.hex, after.hex))
        for role, key in after.recipe.inputs.items():
            above, other = known.get(key), known.get(before.recipe.inputs.get(role, ""))
            if above and other and above.stage == other.stage:
                compare(other, above)
        for what in own_differences(before.recipe, after.recipe):
            found[Difference(after.stage, _named(what, before, after))] = None

    compare(old, new)
    return list(found)


def explanation_lines(answer: dict[str, Any]) -> list[str]:
    """What `explain_keys` or `explain_run` found, for people."""
    if "sentences" in answer:
        return [f"{answer['stage']}: {answer['from'][:12]} → {answer['to'][:12]}", *answer["sentences"]]
    against = f"against run {answer['against']}" if answer["against"] else "the first run that is remembered"
    rows = [
        f"{row['stage']:<17} {row['key'][:12]}  {'reused' if row['hit'] else 'computed':<9} {row['why']}"
        for row in answer["stages"]
    ]
    return [f"run {answer['run']}, {against}", *rows]


def _named(what: str, before: Summary, after: Summary) -> str:
    """The same with the names that people gave: a video and a model are keys only to us."""
    role = what.removeprefix("another ")
    names = [str(each.noted(role) or "") for each in (before, after)]
    return f"{role} {names[0]} → {names[1]}" if what != role and all(names) and names[0] != names[1] else what


def _why(row: dict[str, Any], near: dict[str, Any] | None, before: set[str], known: Mapping[str, Summary]) -> str:
    """Why a stage of a run was computed, or where it was reused from."""
    if row["key"] in before:
        return "as an earlier run made it" if row["hit"] else "it had been collected or dropped since an earlier run"
    if row["hit"]:
        return "it was there, though no earlier run that is remembered used it"
    here = known.get(row["key"])
    if here is None:
        return "its record is gone"
    rivals = [known[key] for key in (_keys(near) if near else ()) if key in known and known[key].stage == here.stage]
    compared = [differences(rival, here, known) for rival in rivals]
    if not compared:
        return "nothing like it in an earlier run"
    return "; ".join(f"{each.stage}.{each.what}" for each in min(compared, key=len)) or "nothing that is known of"


def _keys(run: dict[str, Any]) -> set[str]:
    return {row["key"] for row in run.get("stages", ())}


def _summary(store: Store, known: Mapping[str, Summary], prefix: str) -> Summary:
    path = record_file(store, prefix)
    if path.stem not in known:
        raise InputError(f"the record {path} is damaged; tf verify --repair drops it, and the next run makes it again")
    return known[path.stem]


def _nearest(known: Mapping[str, Summary], own: Summary) -> Summary:
    """The artifact of the same stage with the fewest differences, those made before it first, the newest of equals."""
    others = [other for other in known.values() if other.stage == own.stage and other.hex != own.hex]
    if not others:
        raise InputError(
            f"{own.stage}/{own.hex[:12]} is the only one of its stage; there is nothing to compare it with"
        )

    def rank(other: Summary) -> tuple[int, int]:
        return other.created > own.created, len(differences(other, own, known))

    return min(sorted(others, key=lambda other: other.created, reverse=True), key=rank)
