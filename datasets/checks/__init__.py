"""Checks of prepared shards: counts, published counts, and suspicious clips."""
