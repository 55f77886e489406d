"""Worlds that a controller can act in."""
