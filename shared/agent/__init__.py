"""The agent loop that rollout, evaluation and clinic all run."""
