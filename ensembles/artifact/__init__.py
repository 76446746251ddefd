"""An exported ensemble: its manifest, networks and formats."""
