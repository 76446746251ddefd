"""From a finished run to an exported ensemble: selection, refit, budget and model card."""
