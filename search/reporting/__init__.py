"""A finished run's results: files, terminal, and the report page."""
