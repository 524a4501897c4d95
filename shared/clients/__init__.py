"""Typed async clients of the services; each raises its own `BoundaryError`."""
