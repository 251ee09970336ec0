"""Looking after a store, as a person is told of it: verify, collect, pin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from store.collect import Collection, Limits, collect
from store.errors import InputError
from store.layout import human_bytes
from store.store import Store
from store.verify import Named, Verdict, record_file, repair, verify

from .config import parse_age, parse_bytes
from .terminal import byte_bar

SHOWN = 20  # of a long list; --json has it all


def verified(store: Store, keys: Sequence[str], mend: bool) -> Verdict:
    """Verify with a bar on stderr; `mend` drops what is damaged."""
    with byte_bar("verify") as (begin, advance):
        verdict = verify(store, keys, begin, advance)
    damaged = verdict.damaged or verdict.records
    return repair(store, verdict) if mend and damaged else verdict


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """What `verify` found, the damage first."""
    for damage in verdict.damaged:
        yield f"damaged: {_names(damage.artifacts)} in {damage.path}"
        yield from _first([f"  {name} {wrong}" for name, wrong in damage.files.items()])
        yield from _depending(damage.dependents)
    for record in verdict.records:
        yield f"damaged: {record.reason}"
        yield from _depending(record.dependents)
    yield from _first([f"dropped: {what}" for what in verdict.dropped])
    yield f"{verdict.artifacts} artifacts, {human_bytes(verdict.bytes)} read: {_outcome(verdict)}"
    if verdict.collected:
        yield f"{verdict.collected} were collected, and come back when they are needed"
    if verdict.orphans:
        yield f"{len(verdict.orphans)} objects, {human_bytes(sum(verdict.orphans.values()))}, belong to no record"
    if verdict.drafts:
        yield f"{len(verdict.drafts)} unfinished drafts: their runs go on from there; tf gc drops abandoned ones"


def _outcome(verdict: Verdict) -> str:
    if not (verdict.damaged or verdict.records):
        return "every file has the bytes that were written"
    found = f"damaged: objects {len(verdict.damaged)}, records {len(verdict.records)}"
    if not verdict.dropped:
        return f"{found}; tf verify --repair drops them, and the next run computes them again"
    return f"{found}; what was dropped is computed again by the next run that needs it"


def _depending(dependents: Sequence[Named]) -> Iterator[str]:
    if dependents:
        yield "  made from it, and not damaged by that:"
        yield from _first([f"    {artifact}" for artifact in dependents])


def collected(
    store: Store, max_size: str | None, older_than: str | None, keep_edits: bool, dry_run: bool
) -> Collection:  # fmt: skip
    """Collect within limits as the command line writes them."""
    limits = Limits(
        max_bytes=parse_bytes(max_size, "--max-size") if max_size is not None else None,
        older_than=parse_age(older_than, "--older-than") if older_than is not None else None,
        keep_edits=keep_edits,
    )
    return collect(store, limits, dry_run)


def collection_lines(collection: Collection) -> Iterator[str]:
    """What a collection removed, what is left, and why it is more than was asked for."""
    rows = [
        f"  {human_bytes(each.bytes):>9}  {', '.join(map(_short, each.stages, each.keys))}, last used {each.used[:16]}"
        for each in collection.removed
    ]
    rows += [f"  {human_bytes(each.bytes):>9}  object {each.digest[:12]} of no record" for each in collection.orphans]
    rows += [f"  {human_bytes(each.bytes):>9}  {each.name}" for each in collection.leftovers]
    yield from _first(rows)
    would = "would free" if collection.dry_run else "freed"
    yield f"{would} {human_bytes(collection.freed)}; {human_bytes(collection.left)} of objects left"
    held = {"pinned": collection.pinned, "in use": collection.leased, "edits that are kept": collection.spared}
    reasons = ", ".join(f"{human_bytes(size)} {why}" for why, size in held.items() if size)
    if collection.over:
        yield f"{human_bytes(collection.over)} more than --max-size had to stay: {reasons or 'it cannot be read'}"
    if collection.unreadable:
        yield (
            f"{len(collection.unreadable)} records cannot be read, so objects of no record stay; "
            "tf verify --repair drops such records"
        )


def pin(store: Store, keys: Sequence[str], pinned: bool) -> list[str]:
    """Pin or unpin artifacts by the first digits of their keys; returns the whole keys.

    raises   InputError for a key that names none or several, before any is pinned
    """
    if not keys:
        raise InputError("no key is given; tf list shows them")
    found = [record_file(store, key).stem for key in keys]
    for digits in found:
        (store.pin if pinned else store.unpin)(digits)
    return found


def _names(artifacts: Sequence[Named]) -> str:
    return ", ".join(map(str, artifacts))


def _short(stage: str, key: str) -> str:
    return f"{stage}/{key[:12]}"


def _first(lines: Sequence[str]) -> Iterator[str]:
    """The first of many lines, and how many more there are."""
    yield from lines[:SHOWN]
    if len(lines) > SHOWN:
        yield f"  … and {len(lines) - SHOWN} more; --json names them all"
