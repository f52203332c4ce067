"""What a part of the model may say of itself besides its `forward`."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class Part(nn.Module):
    """A module with something that training or compilation has to know of it."""

    # Methods that torch.compile leaves as they are, because what they do changes from call to call (a loop,
    # the choice of experts). What they call is compiled by itself.
    eager: ClassVar[tuple[str, ...]] = ()
    # Methods that are not compiled, and neither is anything that they call (reports).
    eager_recursively: ClassVar[tuple[str, ...]] = ()

    @property
    def idle_params(self) -> int:
        """Parameters held here that a token does not meet on its way, such as those of other experts.

        Negative if it meets some that another part holds.
        """
        return 0

    def after_step(self) -> None:
        """Called after each optimizer step: count it, or balance something.

        What the next step depends on has to be kept in a buffer, so that a resumed run continues alike.
        """
