"""`medvr trainer --dry-run`: what a run would cost, from a checkpoint's `config.json` alone.

Nothing is trained, loaded, fetched or written, and Redis is not asked. `origins` says where each
setting came from, `tokens` counts a step, `shape` reads the architecture (on torch's meta device),
`memory` and `flops` are arithmetic over both, `report` prints. Every formula stands in the
docstring of its module, with what it leaves out.
"""
