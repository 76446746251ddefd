"""Clips in: corpora, speaker-disjoint folds, shards and streaming.

`prepare` decodes a corpus once into WebDataset shards and an index, `stream` reads
them back, `cache` lays the decoded clips into one memory-mapped file a node, and
`splits` says who is tested when.
"""
