"""Readers of published data sets: the official layout on disk, and the usual hub copy at a pinned revision."""
