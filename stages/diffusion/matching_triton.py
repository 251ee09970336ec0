"""The field on a GPU: a matrix product with a running argmax, so that no score matrix is ever in memory.

Products are of float16 with float32 sums, on tensor cores; against float32 that moves 0.1–0.2 % of the indices, all
between near equals. The similarity is computed again, in float32, for the token that was found.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZES = [  # query tokens, key tokens, channels per block; warps; stages of the pipeline
    (128, 256, 64, 8, 3),
    (128, 128, 64, 8, 3),
    (128, 128, 32, 4, 4),
    (64, 256, 32, 4, 4),
]


@triton.jit
def _nearest(
    queries, keys, index,
    tokens, others, channels, frame_stride, other_stride,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One block of one frame's query tokens against all key tokens; rows of both are contiguous."""
    frame = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    best = tl.full((QUERIES,), float("-inf"), tl.float32)
    found = tl.zeros((QUERIES,), tl.int32)
    asked = queries + frame * frame_stride + rows[:, None] * channels
    for first in range(0, others, KEYS):
        columns = first + tl.arange(0, KEYS)
        offered = keys + frame * other_stride + columns[None, :] * channels
        there = columns[None, :] < others
        scores = tl.zeros((QUERIES, KEYS), tl.float32)
        for start in range(0, channels, CHANNELS):
            part = start + tl.arange(0, CHANNELS)
            q = tl.load(asked + part[None, :], mask=(rows[:, None] < tokens) & (part[None, :] < channels), other=0.0)
            k = tl.load(
                offered + part[:, None], mask=(columns[None, :] < others) & (part[:, None] < channels), other=0.0
            )
            scores = tl.dot(q, k, scores)
        scores = tl.where(there, scores, float("-inf"))
        score, place = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
        better = score > best  # strictly: an equal one further on leaves the lower index
        best = tl.where(better, score, best)
        found = tl.where(better, first + place, found)
    tl.store(index + frame * tokens + rows, found, mask=rows < tokens)


_tuned: Any = triton.autotune(
    [
        triton.Config({"QUERIES": q, "KEYS": k, "CHANNELS": c}, num_warps=warps, num_stages=stages)
        for q, k, c, warps, stages in SIZES
    ],
    key=["tokens", "others", "channels"],
)(_nearest)


def nearest_tokens_fused(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """As `matching.nearest_tokens`, which is its oracle.

    queries   unit tokens (frame, token, channel)
    keys      unit tokens (frame, token, channel), or (1, token, channel) for all frames
    returns   index (frame, token) int64, similarity (frame, token) float32
    """
    frames, tokens, channels = queries.shape
    others = keys.shape[1]
    asked, offered = queries.half().contiguous(), keys.half().contiguous()
    index = torch.empty((frames, tokens), dtype=torch.int32, device=queries.device)
    strides = (tokens * channels, others * channels if len(keys) > 1 else 0)
    given = (asked, offered, index, tokens, others, channels, *strides)
    if queries.is_cuda:
        _tuned[lambda sizes: (triton.cdiv(tokens, sizes["QUERIES"]), frames)](*given)
    else:  # Triton's interpreter
        _nearest[(triton.cdiv(tokens, 32), frames)](*given, QUERIES=32, KEYS=32, CHANNELS=16)
    chosen = index.long()
    matched = keys.expand(frames, -1, -1).gather(1, chosen[..., None].expand(-1, -1, channels))
    return chosen, (queries.float() * matched.float()).sum(-1)
