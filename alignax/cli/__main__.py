"""``python -m alignax.cli`` is the command ``alignax``."""

from alignax.cli import main

if __name__ == "__main__":
    main()
