"""A stage becomes a cached task: found in the store, or computed part by part into a draft. In one place.

A `Step` is lazy: asking for its artifact finds it, or first asks for what it needs. So a run computes only as far up
as needed, whatever has been collected.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from store.artifact import Artifact
from store.draft import Draft
from store.schemas import Block, Blocks

from .models import absolute_place
from .plan import Node, Plan

Run = Callable[..., Blocks]
"""(part, role=artifact, …) → blocks: a stage's `run` with everything but its inputs filled in."""

SPENT = "spent"  # the name in a draft's scratch


@dataclass(frozen=True)
class Use:
    """What a run had of one artifact: found or computed, in how many seconds of this run."""

    node: Node
    artifact: Artifact
    hit: bool
    seconds: float


class Engine(Protocol):
    """Who walks: plain function calls, or Prefect.

    apart    whether parts are done elsewhere, each on its own
    """

    apart: bool

    def found(self, node: Node, artifact: Artifact) -> None:
        """Show that a stage was found in the store."""

    def work(self, node: Node, parts: list[range], do: Callable[[range], None]) -> None:
        """Do all `parts` of a stage."""

    def along(self, node: Node, artifact: Artifact, main: Node) -> None:
        """Show that a stage's artifact was written by the work on another, `main`."""


class Progress(Protocol):
    """Where it is told how far a stage has come."""

    def begin(self, node: Node, total: int, done: int = 0) -> None:
        """A stage starts, with `total` units of work ahead; interrupted runs have done `done` more."""

    def advance(self, units: int) -> None:
        """So many more units are done; fewer than none where work is lost and has to be done again."""

    def end(self, finished: bool = True) -> None:
        """The stage is over: computed to its end, or stopped."""

    def note(self, sentence: str) -> None:
        """Something that the user should hear while it goes on."""


class Direct:
    """No engine: parts are done one after the other, here."""

    apart = False

    def found(self, node: Node, artifact: Artifact) -> None:
        """Nothing to show."""

    def work(self, node: Node, parts: list[range], do: Callable[[range], None]) -> None:
        """Do them."""
        for part in parts:
            do(part)

    def along(self, node: Node, artifact: Artifact, main: Node) -> None:
        """Nothing to show."""


class Quiet:
    """Progress that nobody watches."""

    def begin(self, node: Node, total: int, done: int = 0) -> None: ...

    def advance(self, units: int) -> None: ...

    def end(self, finished: bool = True) -> None: ...

    def note(self, sentence: str) -> None: ...


class Along:
    """Takes the blocks of a second artifact that the same work writes, and knows what share of the time it took."""

    def __init__(self) -> None:
        self.put: Callable[[Block], None] = lambda block: None
        self.seconds = 0.0

    def __call__(self, block: Block) -> None:
        """Write a block of the second artifact."""
        with self.working():
            self.put(block)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time of this block is the second artifact's; counted once where blocks are nested."""
        before, began = self.seconds, time.perf_counter()
        try:
            yield
        finally:
            self.seconds = before + time.perf_counter() - began


class Kept:
    """What unfinished work on a draft keeps there to go on from, and with it what was spent on the work so far.

    work    one part of the draft, or several that are done together: what is spent on others is kept apart
    along   whose seconds are told apart; set to those of interrupted runs
    """

    def __init__(self, session: Session, draft: Draft, work: range, along: Along) -> None:
        self.session, self.draft, self.work, self.along = session, draft, work, along
        seconds, along.seconds, units = spent(draft, work)
        self._began, self._passed_before = time.perf_counter() - seconds, session.passed - units

    def seconds(self) -> float:
        """What the work took until now, less what was done along; interrupted runs included."""
        return time.perf_counter() - self._began - self.along.seconds

    def handed_over(self) -> float:
        """The seconds until now, which a finished part takes with it: from here on they count from zero."""
        seconds = self.seconds()
        self._began += seconds
        self._keep_spent()
        return seconds

    def keep(self, name: str, values: NDArray[Any]) -> None:
        """Keep an array, and what it took to get there."""
        self.draft.keep(name, values)
        self._keep_spent()

    def _keep_spent(self) -> None:
        self.session.kept_at = self.session.passed
        units = self.session.passed - self._passed_before
        values = np.array((self.seconds() + self.along.seconds, self.along.seconds, units))
        self.draft.keep(_spent_name(self.work), values)

    def recall(self, name: str) -> NDArray[Any] | None:
        """An array that was kept."""
        return self.draft.recall(name)

    def forget(self, name: str) -> None:
        """Keep it no more."""
        self.draft.forget(name)


def spent(draft: Draft, work: range) -> tuple[float, float, int]:
    """What interrupted runs spent on unfinished `work`: seconds, those of them along, units of progress."""
    kept = draft.recall(_spent_name(work))
    return (0.0, 0.0, 0) if kept is None else (float(kept[0]), float(kept[1]), int(kept[2]))


def _spent_name(work: range) -> str:
    return f"{SPENT}.{work.start}_{work.stop}"


def joined(parts: list[range]) -> list[range]:
    """Parts that follow each other as one piece of work."""
    pieces: list[range] = []
    for part in parts:
        if pieces and pieces[-1].stop == part.start:
            pieces[-1] = range(pieces[-1].start, part.stop)
        else:
            pieces.append(part)
    return pieces


def write_parts(draft: Draft, blocks: Blocks, kept: Kept) -> None:
    """Write blocks that come part by part, each part finished when the next one's come; those of finished ones go."""
    dim = (draft.schema.parts or ("", 0))[0]
    parts, missing = draft.schema.divided(), draft.missing()

    def part_of(block: Block) -> range:
        dims = draft.schema.variables[block.variable].dims
        return next(part for part in parts if dim not in dims or block.start[dims.index(dim)] in part)

    for part, own in groupby(blocks, part_of):
        if part in missing:
            draft.write(part, own, kept.handed_over)
        else:
            deque(own, maxlen=0)


class Step:
    """One stage of a run: call it to have its artifact."""

    def __init__(self, session: Session, node: Node, compute: Callable[[], Artifact]) -> None:
        self.session, self.node, self._compute = session, node, compute
        self._artifact: Artifact | None = None

    def __call__(self) -> Artifact:
        """The artifact: found, or computed now."""
        if self._artifact is None:
            found = self.session.find(self.node)
            self._artifact = (found and self.session.store.fetch(found)) or self._compute()
        return self._artifact


class Session:
    """One run under way: its plan, its engine, the model (loaded once, when it is first needed), and what was used.

    backbone   gives the model, where sessions share one; without it the session loads its own
    """

    def __init__(
        self, plan: Plan, engine: Engine | None = None, progress: Progress | None = None,
        backbone: Callable[[], Any] | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.store = plan, plan.store
        self.engine: Engine = engine or Direct()
        self.progress: Progress = progress or Quiet()
        self.uses: dict[str, Use] = {}
        self.passed = 0  # units of progress that the model has made
        self.kept_at = 0  # what it had made when the part in hand was last kept: an error loses the rest
        self.open_drafts: dict[str, Draft] = {}  # key in hex → what is being written
        self.stage_in_hand: str | None = None  # what is computed, or was when an error ended it
        self.part_in_hand: str | None = None
        self._loading = threading.Lock()
        self._load = backbone
        self._backbone: Any = None

    @property
    def backbone(self) -> Any:
        """The model, loaded by whoever asks first."""
        with self._loading:
            if self._backbone is None:
                from .runtime import load_backbone

                self._backbone = self._load() if self._load else load_backbone(self.plan)
                self._backbone.tile(self.plan.invert.spec.tiled)
                self._backbone.on_pass = self._advance
                self._backbone.on_note = self.progress.note
        return self._backbone

    def _advance(self, units: int) -> None:
        self.passed += units
        self.progress.advance(units)

    def make_room(self) -> None:
        """After something took the GPU's memory: what is tried again is done in smaller passes."""
        if self._backbone is not None:
            self._backbone.make_room()

    @cached_property
    def decoder(self) -> Any:
        """What decodes the edit in the place of the model's own decoder; None where nothing does."""
        if self.plan.decoder is None:
            return None
        from stages.backbones.decoders import load_decoder

        return load_decoder(self.plan.decoder.folder, self.plan.device)

    def find(self, node: Node) -> Artifact | None:
        """The artifact of a node, counted as reused."""
        artifact = self.store.find(node.key)
        if artifact and node.key.hex not in self.uses:
            self.uses[node.key.hex] = Use(node, artifact, True, 0.0)
            self.engine.found(node, artifact)
        return artifact

    def stage(self, node: Node, run: Run, prompts: tuple[str, ...] = (), scratch: bool = False, **needs: Step) -> Step:
        """A stage whose `run` gets its part and the artifacts it needs.

        prompts   what it has the model read
        scratch   whether its work goes on inside where it was stopped: then `run` gets `scratch`, the draft's, as well,
                  and parts that follow each other as one
        """

        def compute() -> Artifact:
            inputs = {role: step() for role, step in needs.items()}
            with self.draft(node) as draft:

                def do(part: range) -> None:
                    draft.write(part, run(part, **inputs))

                def go_on(piece: range) -> None:
                    kept = Kept(self, draft, piece, Along())
                    write_parts(draft, run(piece, **inputs, scratch=kept), kept)

                pieces = joined(draft.missing()) if scratch and not self.engine.apart else draft.missing()
                done = sum(spent(draft, piece)[2] for piece in pieces) if scratch else 0
                self.work(node, pieces, go_on if scratch else do, done=done)
                draft.note = self.note(node, prompts)
            return self.committed(node, draft)

        return Step(self, node, compute)

    def fused(
        self, node: Node, also: Node, run: Run, prompts: tuple[str, ...] = (), scratch: bool = False, **needs: Step
    ) -> Step:
        """Like `stage`, but the same work writes a second artifact: `run` gets `put`, an `Along`, for its blocks.

        also      what `node` stands on; where both are made, an engine shows the work as its, and `node` as made along
        scratch   as in `stage`: it is that of `node`'s draft, from which the blocks of both come again. Then all parts
                  of `node` are one piece of work with `also`, which is one part; else parts of both go in pairs
        """

        def compute() -> Artifact:
            inputs = {role: step() for role, step in needs.items()}
            with ExitStack() as drafts:
                draft = drafts.enter_context(self.draft(node))
                # Entered last, so committed first: after a kill in between, what `node` stands on is there.
                second = None if self.store.find(also.key) else drafts.enter_context(self.draft(also))
                open_parts = {*draft.missing(), *(second.missing() if second else [])}

                def do(part: range) -> None:
                    with ExitStack() as writing:
                        put = Along()
                        kept = Kept(self, draft, part, put)
                        own = [other for other in second.missing() if scratch or other == part] if second else []
                        if second and own:
                            put.put = writing.enter_context(second.writing(own[0], lambda: put.seconds))
                        if scratch:
                            write_parts(draft, run(part, put=put, **inputs, scratch=kept), kept)
                        elif part in draft.missing():
                            draft.write(part, run(part, put=put, **inputs), kept.seconds)
                        else:
                            deque(run(part, put=put, **inputs), maxlen=0)

                parts = sorted(open_parts, key=lambda part: part.start)
                if scratch and parts:
                    parts = joined(draft.schema.divided())
                done = sum(spent(draft, part)[2] for part in parts) if scratch else 0
                self.work(node, parts, do, shown=also if second else node, done=done)
                if second:
                    second.note = self.note(also, prompts)
            if second is None:
                return self.committed(node, draft)
            self.committed(also, second)
            artifact = self.committed(node, draft)
            self.engine.along(node, artifact, also)
            return artifact

        return Step(self, node, compute)

    @contextmanager
    def draft(self, node: Node) -> Iterator[Draft]:
        """A draft of the node's artifact that says what it was made for and on what."""
        with self.store.draft(node.key, self.plan.schema(node)) as draft:
            draft.note = self.note(node)
            draft.provenance.update(self.plan.provenance)
            draft.needed = self.plan.needed_bytes(node)
            self.open_drafts[node.key.hex] = draft
            try:
                yield draft
            finally:
                del self.open_drafts[node.key.hex]

    def note(self, node: Node, prompts: tuple[str, ...] = ()) -> dict[str, JsonValue]:
        """What people call the artifact, and what the model does not read of `prompts`: never part of its key."""
        cut: dict[str, JsonValue] = {text: end for text in prompts if (end := self.cut_from(text))}
        return {
            "video": self.plan.config.video.name,
            **({"described": self.plan.video.model_dump(mode="json")} if node is self.plan.decode else {}),
            "model": self.plan.config.model,
            "model_place": absolute_place(self.plan.config.model),
            "prompt": node.prompt,
            "cut": cut,
        }

    def cut_from(self, prompt: str) -> str:
        """The end of `prompt` that the model does not read."""
        if self.engine.apart:  # the model is elsewhere, and so are those who read the prompt
            return next((draft.cut[prompt] for draft in self.open_drafts.values() if prompt in draft.cut), "")
        return str(self.backbone.cut_from(prompt)) if prompt else ""

    def work(
        self, node: Node, parts: list[range], do: Callable[[range], None], shown: Node | None = None, done: int = 0
    ) -> None:
        """Have the engine do `parts`, with progress; it shows them as parts of `shown`, or of the node itself.

        done   units of them that interrupted runs have done
        """
        units = self.plan.units_of(node, parts)
        dim = (self.plan.schema(node).parts or (None, 1))[0]
        self.stage_in_hand = node.stage

        def noted(part: range) -> None:
            self.part_in_hand = f"{dim}s {part.start}–{part.stop - 1}" if dim else None
            self.kept_at = self.passed
            try:
                do(part)
            except BaseException:
                self.progress.advance(self.kept_at - self.passed)
                raise

        ahead, finished = max(0, units - done), False
        self.progress.begin(node, ahead, max(0, self.plan.units(node) - ahead))
        try:
            self.engine.work(shown or node, parts, noted)
            finished = True
        finally:
            self.progress.end(finished)

    def committed(self, node: Node, draft: Draft) -> Artifact:
        """The artifact that a draft became."""
        artifact = draft.artifact
        self.uses[node.key.hex] = Use(node, artifact, draft.found is not None, 0.0 if draft.found else draft.seconds)
        return artifact

    def used(self) -> list[Use]:
        """Every artifact of the plan that is there, in DAG order."""
        for node in self.plan.nodes:
            self.find(node)
        return [self.uses[node.key.hex] for node in self.plan.nodes if node.key.hex in self.uses]


def counted(blocks: Blocks, progress: Progress) -> Iterator[Block]:
    """The same blocks, each one unit of progress."""
    for block in blocks:
        progress.advance(1)
        yield block
