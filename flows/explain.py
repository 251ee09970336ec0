"""What a run would do, artifact by artifact, and why: `tf plan`."""

from __future__ import annotations

from typing import Any

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
