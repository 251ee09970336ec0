"""How fast the field of one layer is found, beside a bare matrix product of the same shapes on the same device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from stages.diffusion.matching import fused_kernel_is_there, nearest_tokens, normalized


@torch.inference_mode()
def field_rate(device: str, *, frames: int = 40, keyframes: int = 5, tokens: int = 4096, channels: int = 320) -> Any:
    """TFLOP/s of matching a layer's `frames` with the keyframes before and after, and of the products alone.

    The products are of the type that the matching uses: float16 in the fused kernel, float32 otherwise.
    """
    generator = torch.Generator().manual_seed(0)
    units = normalized(torch.randn(frames, tokens, channels, generator=generator)).to(device)
    keys = units[:keyframes]
    fused = device != "cpu" and fused_kernel_is_there()
    typed, others = (part.half() if fused else part for part in (units, keys))
    interval = -(-frames // keyframes)
    blocks = [slice(first, min(first + interval, frames)) for first in range(0, frames, interval)]

    def match() -> None:
        for _ in range(2):  # both sides
            for place, block in enumerate(blocks):
                nearest_tokens(units[block], keys[place : place + 1])

    def multiply() -> None:
        for _ in range(2):
            for place, block in enumerate(blocks):
                torch.matmul(typed[block], others[place].mT)

    work = 2 * 2 * frames * tokens * tokens * channels
    seconds = {"field": _seconds(match, device), "matmul": _seconds(multiply, device)}
    rates = {name: work / taken / 1e12 for name, taken in seconds.items()}
    answer = {
        "fused": fused, "field_tflops": rates["field"], "matmul_tflops": rates["matmul"],
        "field_over_matmul": rates["field"] / rates["matmul"],
    }  # fmt: skip
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        match()
        answer["bytes_while_matching"] = torch.cuda.max_memory_allocated() - before
        answer["bytes_of_a_score_matrix"] = interval * tokens * tokens * 4
    return answer


def _seconds(do: Callable[[], None], device: str) -> float:
    """The least of three, after one that warms up."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        do()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
