"""Precision of a device, and running out of its memory."""

from __future__ import annotations

import torch

from models import get_architecture
from search.trial_config import TrialConfig


def choose_precision(plan: TrialConfig, device: str, asked: str = "auto") -> str:
    """bfloat16 where the processor computes it and convolutions dominate, else float32."""
    if asked != "auto":
        return asked
    if device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    convolutional = any(get_architecture(name).convolutional for name in plan.parts.values())
    return (
        "bfloat16"
        if convolutional and torch.backends.mkldnn.is_available() and _cpu_has_bfloat16()
        else "float32"
    )


def _cpu_has_bfloat16() -> bool:
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("bf16")
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is the device's memory, or this machine's, that did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def free_memory(device: torch.device) -> None:
    """Give cached memory back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
