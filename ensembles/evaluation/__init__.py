"""Honest scores: cross-fitting, intervals, comparisons and corrections."""
