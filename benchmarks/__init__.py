"""Measurements behind docs/performance.md; nothing imports it. `python -m benchmarks.NAME`."""
