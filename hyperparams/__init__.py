"""Experiments, one a file; loaded by name or path, never imported by the library.

Variants of a task are differences: `replace(base, description=..., algorithm=...)`, where `base` is
the experiment of another file of this folder, `from gps.hyperparams.peg_insertion import ...`.
"""
