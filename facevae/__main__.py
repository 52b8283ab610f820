"""`python -m facevae`."""

from facevae.cli import main

if __name__ == "__main__":
    main()
