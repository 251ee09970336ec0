"""One part of one artifact, computed by a worker that has nothing of the run but what it is told, and the store."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from store.artifact import Artifact
from store.draft import Draft
from store.errors import StoreError, StorePlaceError, TokenflowError
from store.parts import loose, published
from store.remote import is_url

from .config import EditConfig, RuntimeConfig
from .edit import edit_one
from .places import store_at
from .plan import Node, Plan
from .prepare import prepare
from .shots import written_cuts
from .tasks import Quiet, Session, Step
from .videos import KnownVideo

SECONDS_TO_APPEAR = 30.0  # a network folder may be so late to show what another machine has put there


class Stopped(TokenflowError):
    """The run that asked for a part is over, or is being cancelled."""


class Heeding(Quiet):
    """Progress that ends the work when it is told that nobody waits for it any more."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def advance(self, units: int) -> None:
        """Raise Stopped where the work is in vain."""
        if self.over.is_set():
            raise Stopped(f"stopped on {socket.gethostname()}: the run is over; what was finished is kept")


def given(plan: Plan) -> dict[str, Any]:
    """All that a worker has to know of a run: small, plain JSON, and no secret."""
    import torch

    # The device and the cuts are decided where the run is: workers that decide for themselves might disagree.
    runtime = plan.runtime.model_copy(update={"device": plan.device, "runner": "here", "address": None})
    cuts = written_cuts(plan.match.spec.cuts, plan.taken)
    video = KnownVideo(
        key=plan.video_key, info=plan.video, mask_key=plan.mask_key, bars=plan.decode.spec.bars,
        given=tuple(plan.controls.given), region_keys=plan.regions.keys,
    )  # fmt: skip
    return {
        "threads": torch.get_num_threads(),  # the last bits of a sum depend on how many there are
        "config": plan.config.model_copy(update={"cuts": cuts}).model_dump(mode="json"),
        "runtime": runtime.model_dump(mode="json"),
        "store": plan.store.place,
        "video": video.model_dump(mode="json"),
    }


class PartSession(Session):
    """A session that computes one part at a time, and leaves it in the store for the run that gathers it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._number = 0
        self._wanted: set[str] = set()  # keys in hex

    def part(self, key: str, number: int, progress: Heeding) -> bool:
        """Compute part `number` of an artifact; False where it was there already.

        raises    StoreError where this worker would compute something else, or finds not what the part is made from
        """
        plan = self.plan
        plan.look_again()
        node = next((node for node in plan.nodes if node.key.hex == key), None)
        if node is None:
            raise StoreError(
                f"this worker has no name for {key[:12]}: its version of tokenflow or its copy of the model "
                f"{plan.config.model} is another one than the run's; bring both to the same state on every machine"
            )
        fused = node in (plan.extract, plan.match) and not plan.keeps_tokens  # the same work writes both
        nodes = [each for each in ([plan.extract, plan.match] if fused else [node]) if not self.store.find(each.key)]
        place = self.store.parts_place()
        if all(published(place, each.key, plan.schema(each), number) for each in nodes):
            return False
        self._number, self._wanted, self.progress = number, {each.key.hex for each in nodes}, progress
        self._step(node)()
        return True

    def find(self, node: Node) -> Artifact | None:
        """The artifact of a node; what is not wanted here must be there."""
        if node.key.hex in self._wanted:
            return None
        deadline = time.monotonic() + SECONDS_TO_APPEAR
        while (artifact := self.store.find(node.key)) is None:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{node.stage} {node.key.hex[:12]}, which the part is made from, is not in {self.store.place}; "
                    "every machine must see the same store there"
                )
            time.sleep(0.5)
        return artifact

    @contextmanager
    def draft(self, node: Node) -> Iterator[Draft]:
        """A draft of the one part, published on a clean exit."""
        with loose(self.store, node.key, self.plan.schema(node), self._number) as draft:
            draft.provenance.update(self.plan.provenance)
            draft.needed = self.plan.needed_bytes(node) // len(self.plan.schema(node).divided())
            yield draft

    def committed(self, node: Node, draft: Draft) -> Any:
        """Nothing is committed here."""
        return None

    def _step(self, node: Node) -> Step:
        prepared, plan = prepare(self), self.plan
        steps = {plan.invert.key.hex: prepared.latents, plan.match.key.hex: prepared.field}
        steps[plan.extract.key.hex] = prepared.tokens if plan.keeps_tokens else prepared.field
        if plan.mask is not None and prepared.mask is not None:
            steps[plan.mask.key.hex] = prepared.mask
        steps |= {mask.key.hex: step for mask, step in zip(plan.regions.masks, prepared.regions, strict=True)}
        if plan.noise is not None and prepared.noise is not None:
            steps[plan.noise.key.hex] = prepared.noise
        for keyframes, edited in plan.edits:
            steps[keyframes.key.hex], steps[edited.key.hex] = edit_one(self, prepared, keyframes, edited)
        return steps[node.key.hex]


class _Here:
    """What this process keeps from part to part: the model is loaded once."""

    said: dict[str, Any] | None = None
    session: PartSession | None = None


_one_at_a_time = threading.Lock()  # a model is patched while it works


def compute(said: dict[str, Any], key: str, number: int, progress: Heeding) -> bool:
    """One part of the run that `given` said, here; False where it was there already."""
    import torch

    with _one_at_a_time:
        if torch.get_num_threads() != said["threads"]:
            torch.set_num_threads(said["threads"])
        if _Here.said != said or _Here.session is None:
            _Here.said, _Here.session = said, None  # one model at a time in memory
            _Here.session = PartSession(_plan(said))
        return _Here.session.part(key, number, progress)


def _plan(said: dict[str, Any]) -> Plan:
    place = str(said["store"])
    if not is_url(place) and not (Path(place) / "format").is_file():
        raise StorePlaceError(
            f"there is no store in {place}: that folder must be the same one on every machine; share it, or name a "
            "store by its URL with --store"
        )
    config, runtime = EditConfig.model_validate(said["config"]), RuntimeConfig.model_validate(said["runtime"])
    return Plan(config, runtime, store_at(place), KnownVideo.model_validate(said["video"]))
