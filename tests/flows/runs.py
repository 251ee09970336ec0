"""Runs of the whole method on a tiny model, and what they executed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import flows.runtime
from flows.config import RuntimeConfig, make_config, make_runtime
from flows.plan import STAGES, Plan
from flows.run import Result, run_edit
from stages import extract_tokens, propagate_tokens
from stages.backbones.adapters import Adapters
from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from store.store import Store
from tests.stages.clips import write_clip

PREPARE = ["decode_frames", "invert_frames", "extract_tokens", "match_tokens"]
EDIT = ["edit_keyframes", "propagate_tokens"]
ALL = [*PREPARE, *EDIT]
SMALL: dict[str, Any] = {"steps": 2, "keyframe_interval": 3, "prompts": ("a red ball",)}


@dataclass
class Executed:
    """What was really executed: stage `run`s begun, models loaded, frames of UNet passes."""

    stages: Counter[str] = field(default_factory=Counter)
    models: int = 0
    passed: int = 0

    def clear(self) -> None:
        """Forget what was counted so far."""
        self.stages.clear()
        self.models = self.passed = 0

    @property
    def names(self) -> list[str]:
        """The stages that were executed, in DAG order; a source pass is extract_tokens at work."""
        done = {*self.stages} | ({"extract_tokens"} if self.stages["source pass"] else set())
        return [name for name in ALL if name in done]


def small_clip(path: Path, frames: int = 7, **options: Any) -> Path:
    """A numbered clip of 32×32 pixels."""
    return write_clip(path, frames=frames, width=32, height=32, **options)


def make_plan(video: Path, model: Path, store: Path | Store, **changed: Any) -> Plan:
    """The plan of a small edit."""
    runtime = {name: changed.pop(name) for name in RuntimeConfig.model_fields if name in changed}
    config = make_config(video=video, model=str(model), **(SMALL | changed))
    return Plan(config, make_runtime(**runtime), store if isinstance(store, Store) else Store(store))


def edit(plan: Plan, folder: Path) -> Result:
    """Run a plan without Prefect; videos go to `folder`."""
    return run_edit(plan, folder / "edit.mp4", "direct")


def computed(result: Result) -> list[str]:
    """The stages that a run says it computed, in DAG order, each once."""
    return list(dict.fromkeys(use.node.stage for use in result.uses if not use.hit))


def digests(result: Result) -> dict[tuple[str, str | None], str]:
    """What came out, by stage and prompt."""
    return {(use.node.stage, use.node.prompt): use.artifact.digest for use in result.uses}


_loaded: dict[str, StableDiffusion] = {}  # by path and adapters


def counting(patch: pytest.MonkeyPatch) -> Executed:
    """Count what is executed from now on; a model is read from the disk once and shared by all tests."""
    executed, loaded = Executed(), _loaded
    for name, module in STAGES.items():
        patch.setattr(module, "run", _counted(executed, module.run, name))
    patch.setattr(propagate_tokens, "run_whole", _counted(executed, propagate_tokens.run_whole, *EDIT))
    read = extract_tokens.SourcePass.read

    def counted_read(source: Any, *given: Any) -> Any:
        executed.stages["source pass"] += 1
        return read(source, *given)

    def counted_load(model: str, runtime: Runtime, adapters: Adapters) -> StableDiffusion:
        executed.models += 1
        name = f"{model} {adapters}"
        if name not in loaded:
            loaded[name] = load(model, runtime, adapters)
        return StableDiffusion(loaded[name].pipeline, runtime)

    predict = StableDiffusion.predict_noise

    def counted_predict(backbone: StableDiffusion, latents: Any, *given: Any, **named: Any) -> Any:
        executed.passed += len(latents)
        return predict(backbone, latents, *given, **named)

    patch.setattr(extract_tokens.SourcePass, "read", counted_read)
    patch.setattr(StableDiffusion, "predict_noise", counted_predict)
    patch.setattr(flows.runtime, "load", counted_load)
    return executed


def _counted(executed: Executed, run: Callable[..., Any], *names: str) -> Callable[..., Iterator[Any]]:
    def counted(*given: Any, **named: Any) -> Iterator[Any]:
        executed.stages.update(names)
        yield from run(*given, **named)

    return counted


def broken_model(model: Path, folder: Path) -> Path:
    """A copy of a model with a NaN in the UNet's weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder
