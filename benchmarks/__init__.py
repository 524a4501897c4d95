"""Benchmarks: each measures against something real in the same run and says so in one JSON line."""
