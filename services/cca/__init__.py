"""CCA: the only place where a reward is computed, and consensus at inference (METHOD.md)."""
