"""One run over several workers, which share nothing but the store: Prefect's Dask or Ray task runner.

The run itself walks as ever: it holds the drafts, decodes the video, asks for the parts that are missing, gathers them
from the store and commits. A worker is told the configuration, what is known of the video, and which part.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.futures import as_completed
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff

from flows.config import EditConfig, RuntimeConfig
from flows.edit import edit_one
from flows.engine import EngineError
from flows.places import store_at
from flows.plan import Node, Plan
from flows.prefect_engine import PrefectEngine, may_pass, part_title
from flows.prepare import prepare
from flows.tasks import Session, Step
from flows.videos import KnownVideo
from stages.diffusion.checks import FullDeviceError, NonFiniteLatents
from store.draft import Draft
from store.errors import FullPlaceError, InputError, SilentPlaceError, StoreError, TokenflowError
from store.parts import adopt, is_published, loose

ERRORS: dict[str, type[TokenflowError]] = {
    kind.__name__: kind
    for kind in (NonFiniteLatents, FullDeviceError, FullPlaceError, SilentPlaceError, InputError, StoreError)
}  # what a worker's error is here, by the first of its classes that stands here


def task_runner(runtime: RuntimeConfig) -> Any:
    """The task runner that a run asks for.

    raises    InputError where its package is not installed
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if runtime.runner == "dask":
            from prefect_dask import DaskTaskRunner

            own = {"n_workers": 2, "threads_per_worker": 1}
            return DaskTaskRunner(address=runtime.address) if runtime.address else DaskTaskRunner(cluster_kwargs=own)
        from prefect_ray import RayTaskRunner

        return RayTaskRunner(address=runtime.address)
    except ImportError as error:
        raise InputError(
            f"--runner {runtime.runner} needs a package that is not installed ({error}); "
            f"pip install 'tokenflow[{runtime.runner}]'"
        ) from None


class SpreadEngine(PrefectEngine):
    """Has parts computed by the workers of the flow's task runner, side by side, and gathers them."""

    apart = True

    def work(self, node: Node, parts: list[range], do: Callable[[range], None]) -> None:
        """Have all parts done; those of decoding here, where the file is."""
        if node.stage == "decode_frames":
            super().work(node, parts, do)
            return
        session, numbers = self.walk.session, self.plan.schema(node).divided()
        dim = (self.plan.schema(node).parts or (None, 0))[0]
        given, upstream = _given(self.plan), self._upstream(node)
        for draft in session.open_drafts.values():
            draft.gathers = True
        futures: dict[Any, range] = {}
        with _on_gpu(self.plan):
            for part in parts:
                title = part_title(node, dim, part)
                named: Any = spread_part.with_options(name=node.stage, task_run_name=title, tags=self._tags(node))
                future = named.submit(given, node.key.hex, numbers.index(part), wait_for=upstream)
                futures[future] = part
        try:
            for future in as_completed(list(futures)):
                self._gather(node, future, futures[future])
        except BaseException:
            for future in futures:
                getattr(future.wrapped_future, "cancel", lambda: None)()
            raise

    def _gather(self, node: Node, future: Any, part: range) -> None:
        future.wait()  # what it knows of its end it learns here
        state: State[Any] = future.state
        if not state.is_completed():
            raise _error_of(state)
        session = self.walk.session
        for draft in session.open_drafts.values():
            adopt(session.store.parts_place(), draft)
        said: Any = state.result(raise_on_failure=False)
        session.cuts.update(said or {})
        self.states.setdefault(node.key.hex, []).append(state)
        session.progress.advance(self.plan.units_of(node, [part]))


def _given(plan: Plan) -> dict[str, Any]:
    """All that a worker has to know; small, and plain JSON. The last bits of a sum depend on the number of threads."""
    import torch

    video = KnownVideo(key=plan.video_key, info=plan.video)
    return {
        "threads": torch.get_num_threads(),
        "config": plan.config.model_dump(mode="json"),
        "runtime": plan.runtime.model_dump(mode="json"),
        "store": plan.store.place,
        "video": video.model_dump(mode="json"),
    }


def _on_gpu(plan: Plan) -> AbstractContextManager[Any]:
    """While it is entered, tasks go to workers that have a GPU, where the run wants one."""
    if plan.device != "cuda":
        return nullcontext()
    if plan.runtime.runner == "dask":
        import dask

        return dask.annotate(resources={"GPU": 1})
    from prefect_ray.context import remote_options

    return remote_options(num_gpus=1)


def _error_of(state: State[Any]) -> Exception:
    """What a worker's task run ended with, as it would have been raised here."""
    data: Any = state.result(raise_on_failure=False)
    said: dict[str, Any] = data if isinstance(data, dict) else {}
    kind = ERRORS.get(str(said.get("kind")))
    if kind is None:
        return EngineError(
            f"a worker could not do its part ({state.name}: {' '.join(str(state.message).split())[:300]})"
        )
    error = kind(str(said["sentence"]))
    for name in ("stage", "timestep", "frame"):
        if name in said:
            setattr(error, name, said[name])
    return error


# on the worker


class PartSession(Session):
    """A session that computes one part of one artifact at a time, and leaves it in the store."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.number = 0
        self.said: dict[str, Any] = {}

    @contextmanager
    def draft(self, node: Node) -> Iterator[Draft]:
        """A loose part."""
        place = self.store.parts_place()
        with loose(self.store.layout, place, node.key, self.plan.schema(node), self.number) as draft:
            draft.provenance.update(self.plan.provenance)
            yield draft
            self.said = draft.note["cut"] if isinstance(draft.note, dict) else {}  # type: ignore[assignment]

    def committed(self, node: Node, draft: Draft) -> Any:
        """Nothing is committed here."""
        return None

    def part(self, key: str, number: int) -> dict[str, Any] | None:
        """Compute a part; returns which prompts the model does not read to their end, None where it was there."""
        node = next(node for node in self.plan.nodes if node.key.hex == key)
        fused = node is self.plan.extract and not self.plan.keeps_tokens  # matching comes with it
        wanted = [node, self.plan.match] if fused else [node]
        missing = [each for each in wanted if not self.store.find(each.key)]
        place = self.store.parts_place()
        if all(is_published(place, each.key, self.plan.schema(each), number) for each in missing):
            return None
        self.number, self.said = number, {}
        self._step(node)()
        return self.said

    def _step(self, node: Node) -> Step:
        prepared, plan = prepare(self), self.plan
        steps = {plan.invert.key.hex: prepared.latents, plan.match.key.hex: prepared.field}
        steps[plan.extract.key.hex] = prepared.tokens if plan.keeps_tokens else prepared.field
        for keyframes, edited in plan.edits:
            of_prompt = edit_one(self, prepared, keyframes, edited)
            steps |= {keyframes.key.hex: of_prompt[0], edited.key.hex: of_prompt[1]}
        return steps[node.key.hex]


@dataclass
class _Here:
    """What this process keeps from part to part: the model is loaded once."""

    given: dict[str, Any] | None = None
    session: PartSession | None = None


_here, _one_at_a_time = _Here(), threading.Lock()
_failed: dict[str, BaseException] = {}  # id of a task run → its last error


def compute(given: dict[str, Any], key: str, number: int) -> dict[str, Any] | None:
    """One part, on this worker; see `PartSession.part`."""
    import torch

    with _one_at_a_time:
        if torch.get_num_threads() != given["threads"]:
            torch.set_num_threads(given["threads"])
        if _here.given != given or _here.session is None:
            config, runtime = EditConfig.model_validate(given["config"]), RuntimeConfig.model_validate(given["runtime"])
            plan = Plan(config, runtime, store_at(given["store"]), KnownVideo.model_validate(given["video"]))
            _here.given, _here.session = given, PartSession(plan)
        _here.session.plan.look_again()
        return _here.session.part(key, number)


def _try_again(_task: Any, run: Any, state: State[Any]) -> bool:
    error = _failed.get(str(run.id))
    again = may_pass(error, run.run_count)
    if again and error is not None and _here.session is not None:
        error.__traceback__ = None  # it holds what the part had in memory
        if type(error).__name__ == "OutOfMemoryError":
            _here.session.make_room()
    return again


@task(
    cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5, retry_condition_fn=_try_again,
)  # fmt: skip
def spread_part(given: dict[str, Any], key: str, number: int) -> State[Any]:
    """One part of an artifact, left in the store for the run that gathers it."""
    context = TaskRunContext.get()
    run = str(context.task_run.id) if context else ""
    try:
        cut = compute(given, key, number)
        who = f"by {socket.gethostname()}, process {os.getpid()}"
        return Completed(message="it was there already" if cut is None else who, data=cut or {})
    except Exception as error:
        _failed[run] = error
        if not isinstance(error, TokenflowError):
            raise
        kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in ERRORS), "InputError")
        sentence = f"{error} (on the worker {socket.gethostname()})"
        where = {n: v for n in ("stage", "timestep", "frame") if (v := getattr(error, n, None)) is not None}
        return Failed(message=sentence, data={"kind": kind, "sentence": sentence, **where})
