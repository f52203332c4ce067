"""The base class of modules with hooks beyond `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn

Total = Callable[[torch.Tensor], torch.Tensor]  # adds up a tensor over the processes that train together


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """The total of a process that trains alone."""
    return tensor


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

    def borrowed(self) -> Iterator[nn.Parameter]:
        """The parameters used here that belong to another part."""
        return iter(())

    def after_step(self, total: Total = alone) -> None:
        """Called after each optimizer step, for example to count it or to balance experts.

        Keep state that later steps depend on in a buffer: buffers are saved, so a resumed run continues
        identically. It has to become the same in all processes: add up with `total` what each of them counts.
        """


def when_training(module: nn.Module, name: str, other: Callable[..., Any]) -> None:
    """Let `other` take the place of a method of this module while the module is in training mode.

    The modules and the names of parameters stay the same.
    """
    own = getattr(module, name)

    def method(*arguments: Any) -> Any:
        return (other if module.training else own)(*arguments)

    setattr(module, name, method)
