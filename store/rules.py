"""The rules that values keep, checked block by block while writing: one reduction each, then the first bad place."""

from __future__ import annotations

from typing import Any

import numpy as np

from store.schemas import Variable

Values = np.ndarray[Any, Any]


def broken_rule(variable: Variable, values: Values, start: tuple[int, ...] = ()) -> str | None:
    """The first rule that `values`, placed at `start`, break, with the place and the number; None when all hold.

    A NaN breaks `ge` and `le` too. Sums may be off by four roundings of the dtype.
    """
    if not values.size:
        return None
    start = start or (0,) * values.ndim
    if variable.finite and not _all_finite(values):
        return f"must be finite, but {_first(variable, ~np.isfinite(values), values, start)}"
    if variable.ge is not None and not values.min() >= variable.ge:
        return f"must be at least {variable.ge:g}, but {_first(variable, ~(values >= variable.ge), values, start)}"
    if variable.le is not None and not values.max() <= variable.le:
        return f"must be at most {variable.le:g}, but {_first(variable, ~(values <= variable.le), values, start)}"
    if variable.sums_to_one is not None:
        return _sum_off(variable, variable.sums_to_one, values, start)
    return None


def _all_finite(values: Values) -> bool:
    if values.dtype.kind != "f":
        return True
    if values.dtype == np.float16:  # on the bits: numpy's own float16 test is four times slower
        return bool((values.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool(np.isfinite(values).all())


def _sum_off(variable: Variable, dim: str, values: Values, start: tuple[int, ...]) -> str | None:
    axis = variable.dims.index(dim)
    if values.shape[axis] != variable.shape[axis]:
        return f"must sum to one over {dim}, so a block must hold all {variable.shape[axis]} of them"
    sums = values.sum(axis=axis, keepdims=True, dtype=np.float64)
    rounding = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0
    off = ~(np.abs(sums - 1) <= 4 * rounding)
    return f"must sum to one over {dim}, but {_first(variable, off, sums, start, dim)}" if off.any() else None


def _first(variable: Variable, bad: Values, values: Values, start: tuple[int, ...], summed: str = "") -> str:
    """'frame 3, channel 0 is nan': the first bad place, counted from the start of the whole array."""
    index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
    place = ", ".join(
        f"{dim} {offset + i}" for dim, offset, i in zip(variable.dims, start, index, strict=True) if dim != summed
    )
    more = int(bad.sum()) - 1
    return f"{place or 'it'} is {values[index]:g}" + (f" (and {more} more)" if more else "")
