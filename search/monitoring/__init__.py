"""Monitoring of a running search: the live table, gauges, loggers and logs."""
