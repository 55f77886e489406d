"""Experiments, one a file; loaded by name or path, never imported by the library."""
