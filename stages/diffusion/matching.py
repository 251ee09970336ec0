"""Which token of another frame each token is nearest to: the field γ, for one layer and pair of frames at a time.

Source: TokenFlow (arXiv 2307.10373), section 4.2, eq. 3.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 1 << 22  # cosines held at a time: 16 MiB, which stay in a CPU's cache while they are searched


def normalized(tokens: Tensor) -> Tensor:
    """Unit tokens in float32: half-precision cosines would flip up to 1 % of the matches."""
    return F.normalize(tokens.float(), dim=-1)


def nearest_tokens(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """For each query token, the key token with the largest cosine: γ[p] = argmax_q cos(φ[p], φ'[q]).

    On a CUDA device the fused kernel of `matching_triton` does it, where Triton is installed.

    queries   unit tokens (frame, token, channel) float32
    keys      unit tokens (frame, token, channel), or (1, token, channel) for all frames
    returns   index (frame, token) int64 and similarity (frame, token) float32; ties go to the lowest index
    """
    if queries.is_cuda and fused_kernel_is_there():
        from .matching_triton import nearest_tokens_fused

        return nearest_tokens_fused(queries, keys)
    frames, tokens, _ = queries.shape
    rows = max(1, SCORES_AT_ONCE // (frames * keys.shape[1]))
    best = [(chunk @ keys.mT).max(dim=-1) for chunk in queries.split(rows, dim=1)]
    similarity = torch.cat([chunk.values for chunk in best], dim=1)
    index = torch.cat([chunk.indices for chunk in best], dim=1)
    assert index.shape == (frames, tokens)
    return index, similarity


@cache
def fused_kernel_is_there() -> bool:
    """Whether Triton is installed (torch for CUDA brings it on Linux), and the C compiler that it starts kernels by."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return find_spec("triton") is not None and bool(compiler) and headers.is_file()
