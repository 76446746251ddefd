"""The corpus as trials read it: shards, cache, targets and the rows of the bank."""
