"""The base class of modules with hooks beyond `forward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn


class Part(nn.Module):
    """A module with hooks for training, compilation and parameter counting."""

    # Methods that torch.compile skips together with everything they call, because what they do
    # changes from call to call: reports, experts one by one.
    eager: ClassVar[tuple[str, ...]] = ()

    @property
    def idle_params(self) -> int:
        """Number of parameters owned here but not used for a token, such as those of other experts.

        Negative if this part uses parameters that another part owns.
        """
        return 0

    def after_step(self) -> None:
        """Called after each optimizer step, for example to count it or to balance experts.

        Keep state that later steps depend on in a buffer: buffers are saved, so a resumed run continues
        identically.
        """


def when_training(module: nn.Module, name: str, other: Callable[..., Any]) -> None:
    """Let `other` take the place of a method of this module while the module is in training mode.

    The modules and the names of parameters stay the same.
    """
    own = getattr(module, name)

    def method(*arguments: Any) -> Any:
        return (other if module.training else own)(*arguments)

    setattr(module, name, method)
