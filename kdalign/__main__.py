"""``python -m kdalign``, for torchrun."""

from kdalign.cli import main

if __name__ == "__main__":
    main()
