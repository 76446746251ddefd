"""The search: its space, the trial, the run and the report."""
