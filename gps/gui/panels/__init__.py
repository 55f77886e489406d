"""The page in the browser, one panel a file; `Page` puts them together."""

from gps.gui.panels.page import Page

__all__ = ["Page"]
