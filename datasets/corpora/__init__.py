"""Corpora, one a file: raw folders become clip records. They are listed in this order."""

# ruff: noqa: F401, I001

from datasets.corpora import ravdess
from datasets.corpora import iemocap
from datasets.corpora import recola
from datasets.corpora import crema_d
from datasets.corpora import manifest
from datasets.corpora import synthetic_options
