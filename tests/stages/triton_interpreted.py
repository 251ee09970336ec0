"""The kernel of `matching_triton`, run by Triton's interpreter, against `nearest_tokens`: asserts, and says nothing.

TRITON_INTERPRET=1 python -m tests.stages.triton_interpreted
"""

from __future__ import annotations

import torch

from stages.diffusion.matching import nearest_tokens, normalized
from stages.diffusion.matching_triton import nearest_tokens_fused

SHAPES = [  # frames, query tokens, frames of keys, key tokens, channels: whole blocks and parts of them
    (2, 64, 2, 64, 32),
    (3, 33, 1, 70, 20),
    (1, 1, 1, 1, 8),
    (2, 5, 2, 100, 48),
    (1, 40, 1, 31, 17),
]


def main() -> None:
    """Compare all shapes, and ties."""
    generator = torch.Generator().manual_seed(0)
    for frames, tokens, key_frames, others, channels in SHAPES:
        # Values that float16 holds exactly: then both find the very same token.
        queries = torch.randint(-8, 9, (frames, tokens, channels), generator=generator).float() / 8
        keys = torch.randint(-8, 9, (key_frames, others, channels), generator=generator).float() / 8
        index, similarity = nearest_tokens_fused(queries, keys)
        expected, cosines = nearest_tokens(queries, keys)
        assert index.dtype == expected.dtype and torch.equal(index, expected), (frames, tokens, others, channels)
        torch.testing.assert_close(similarity, cosines)
    queries, keys = normalized(torch.randn(2, 50, 24, generator=generator)), torch.randn(1, 60, 24, generator=generator)
    index, similarity = nearest_tokens_fused(queries, normalized(keys))
    expected, cosines = nearest_tokens(queries, normalized(keys))
    assert (index != expected).float().mean() < 0.02, "only near ties may differ"
    torch.testing.assert_close(similarity, cosines, rtol=0, atol=1e-3)
    equal = normalized(torch.ones(1, 90, 16))
    assert not nearest_tokens_fused(equal[:, :40], equal)[0].any(), "of equal tokens the first is taken"


if __name__ == "__main__":
    main()
