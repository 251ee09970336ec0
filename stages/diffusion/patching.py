"""Models are changed for the length of a with-block only, and put back on any exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Hook = Callable[[nn.Module, Any, Tensor], Tensor | None]
Forward = Callable[..., Any]


@contextmanager
def patched(
    unet: nn.Module, processors: Mapping[str, Any], hooks: Mapping[str, Hook] | None = None,
    forwards: Mapping[str, Forward] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Give attention modules other processors, and modules forward hooks or another forward, until the block ends.

    processors   name of an attention module (as in `named_modules`) → diffusers attention processor
    hooks        name of any module → called with (module, inputs, output); what it returns replaces the output
    forwards     name of any module → called in its place, with its arguments
    """
    with ExitStack() as restored:
        for name, processor in processors.items():
            attention: Any = unet.get_submodule(name)
            restored.callback(attention.set_processor, attention.processor)
            attention.set_processor(processor)
        for name, hook in (hooks or {}).items():
            restored.callback(unet.get_submodule(name).register_forward_hook(hook).remove)
        for name, forward in (forwards or {}).items():
            module = unet.get_submodule(name)
            module.forward = forward
            restored.callback(module.__dict__.pop, "forward", None)
        yield
