"""Benchmarks of speed, robustness and results; RESULTS.md has their output."""
