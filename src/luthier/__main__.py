"""`python -m luthier`: the command, where it is not on the path."""

from luthier.cli.main import main

if __name__ == "__main__":
    main()
