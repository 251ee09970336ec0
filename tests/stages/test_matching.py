"""Promises of matching: the nearest token is the brute-force argmax, on the CPU and in the GPU's kernel alike."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.diffusion import matching
from stages.diffusion.matching import nearest_tokens, normalized

ROOT = Path(__file__).parents[2]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    frames=st.integers(1, 4), queries=st.integers(1, 12), keys=st.integers(1, 12), shared=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_nearest_tokens_are_the_brute_force_argmax(
    frames: int, queries: int, keys: int, shared: bool, seed: int
) -> None:
    asked = random(frames, queries, 6, seed=seed)
    offered = random(1 if shared else frames, keys, 6, seed=seed + 1000)
    index, similarity = nearest_tokens(normalized(asked), normalized(offered))
    assert index.shape == similarity.shape == (frames, queries)
    for frame in range(frames):
        for token in range(queries):
            q, k = asked[frame, token].double(), offered[0 if shared else frame].double()
            cosines = (k @ q) / (k.norm(dim=1) * q.norm())
            assert int(index[frame, token]) == int(cosines.argmax())
            assert float(similarity[frame, token]) == pytest.approx(float(cosines.max()), abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 7, 50, 1000])
def test_matching_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    asked, offered = normalized(random(3, 20, 8)), normalized(random(1, 20, 8, seed=1))
    whole = nearest_tokens(asked, offered)
    monkeypatch.setattr(matching, "SCORES_AT_ONCE", at_once)
    chunked = nearest_tokens(asked, offered)
    assert torch.equal(whole[0], chunked[0])
    torch.testing.assert_close(whole[1], chunked[1], rtol=0, atol=1e-6)


def test_units_are_made_in_single_precision() -> None:
    units = normalized((random(2, 5, 8) * 300).half())
    assert units.dtype == torch.float32
    torch.testing.assert_close(units.norm(dim=-1), torch.ones(2, 5), rtol=0, atol=1e-6)


def test_without_a_compiler_no_kernel_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton would fail at the first match, after minutes of inversion."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(matching.shutil, "which", lambda name: None)
    assert not matching.fused_kernel_is_there.__wrapped__()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install triton")
def test_the_kernel_agrees_with_the_cpu_in_tritons_interpreter() -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    subprocess.run(
        [sys.executable, "-m", "tests.stages.triton_interpreted"],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True, timeout=300,
    )  # fmt: skip
