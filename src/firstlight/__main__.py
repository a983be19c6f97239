"""`python -m firstlight`: the same as the command `firstlight`, for launchers that take a module."""

from firstlight.cli import main

if __name__ == "__main__":
    main()
