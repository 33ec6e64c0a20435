"""``python -m fairanon``."""

from fairanon.cli import entry

if __name__ == "__main__":
    entry()
