"""What every early fusion has to know of its parts."""

from __future__ import annotations

from models.registry import ClipShape, Settings, get_architecture


def cost_of_parts(settings: Settings, shape: ClipShape) -> float:
    """Multiply-accumulates of both encoders; joining them costs little beside."""
    total = 0.0
    for part in ("audio", "video"):
        entry = get_architecture(settings[part]["architecture"])
        total += entry.cost({**entry.default, **settings[part].get("settings", {})}, shape)
    return total
