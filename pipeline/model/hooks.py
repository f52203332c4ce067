"""The base class of modules with hooks beyond `forward`."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class Part(nn.Module):
    """A module with hooks for training, compilation and parameter counting."""

    # Methods that torch.compile skips, because their control flow or shapes change from call to call (a loop,
    # the choice of experts). The functions they call are still compiled.
    eager: ClassVar[tuple[str, ...]] = ()
    # Methods that torch.compile skips together with everything they call (reports).
    eager_recursively: ClassVar[tuple[str, ...]] = ()

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
