"""The search space: architectures, their settings, and what a run may propose of them."""
