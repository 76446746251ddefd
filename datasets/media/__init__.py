"""Decoding of audio and video files, faces, crops and windows."""
