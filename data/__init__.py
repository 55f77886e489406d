"""Models (MJCF) and small recorded data."""
