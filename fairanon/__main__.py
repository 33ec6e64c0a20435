"""``python -m fairanon``."""

import sys

from fairanon.cli import main

if __name__ == "__main__":
    sys.exit(main())
