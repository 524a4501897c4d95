"""GRPO: consumes scored trajectory groups, steps, checkpoints and publishes weights.

`loop` reads aloud what happens in which order; `delivery` keeps a group from being trained twice;
`loss` holds METHOD.md's formulas. Each trajectory is computed on its own here: slow where siblings
share a prefix, and therefore the oracle for a trainer of trees.
"""
