"""WebDataset shards: written, indexed, streamed, and cached decoded on a node."""
