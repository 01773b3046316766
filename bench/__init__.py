"""Benchmarks: how fast prewarm is next to the tools that it stands on, in one run."""
