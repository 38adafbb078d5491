"""`python -m ziggurat`: the command."""

from ziggurat.cli import main

if __name__ == "__main__":
    main()
