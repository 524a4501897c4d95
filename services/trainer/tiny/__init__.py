"""The tiny policy: a real Qwen2.5-VL architecture that two CPU cores can train and serve."""
