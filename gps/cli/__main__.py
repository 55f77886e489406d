"""`python -m gps.cli`."""

import sys

from gps.cli import main

if __name__ == "__main__":
    sys.exit(main())
