"""GRPO: consumes scored trajectory groups, steps, checkpoints and publishes weights.

`loop` reads aloud what happens in which order; `delivery` keeps a group from being trained twice;
`loss` holds METHOD.md's formulas. Groups are computed as trees of tokens (`tree`), so that what
siblings share is computed once; the gradient is that of one by one.
"""
