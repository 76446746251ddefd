"""Corpora, one file each: from the layout that their authors give to clip records."""
