"""Zoom: the one place that decodes untrusted images; originals in, crops out.

Invariant: bytes from outside are parsed only in a decoder child process (`sandbox`) with limited
memory and time. The serving process looks at magic numbers, and decodes nothing but the PNGs that
a child made.
"""
