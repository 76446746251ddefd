"""Features by clip, one row a clip or one a frame, from tables and folders of files; one format a file.

CSV (ours and openSMILE's), Parquet, npz, ARFF; folders of such files or of npy, one a clip; OpenFace's.
"""

from datasets.features.reading import read_clip, read_features, with_features
from datasets.features.table import MISSING_CHOICES, FeatureTable, clip_means

__all__ = [
    "MISSING_CHOICES",
    "FeatureTable",
    "clip_means",
    "read_clip",
    "read_features",
    "with_features",
]
