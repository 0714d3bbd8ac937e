"""``python -m skbegan``: the command line, see :mod:`skbegan.cli`."""

import sys

from skbegan.cli import main

if __name__ == "__main__":
    sys.exit(main())
