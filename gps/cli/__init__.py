"""The command `gps`: run, resume, gui, plot, evaluate, export, list, new.

Heavy packages are imported by the commands that need them, so that `gps list` answers at once.
"""

from gps.cli.commands import COMMANDS, main

__all__ = ["COMMANDS", "main"]
