"""List the presets."""

from __future__ import annotations

from pipeline.config import presets


def main() -> None:
    """List the presets and what they train."""
    known = presets.names()
    width = max(map(len, known))
    for name in known:
        print(f"{name:<{width}}  {presets.description(name)}")
