"""``python -m purestate`` is the command ``purestate``."""

from purestate.cli import main

if __name__ == "__main__":
    main()
