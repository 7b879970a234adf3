"""``python -m natal``: the command line, where its script is not on the path."""

from natal.cli import main

if __name__ == "__main__":
    main()
