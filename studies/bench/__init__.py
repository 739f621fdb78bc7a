"""Benchmarks: how long the attention takes, and what it exchanges."""
