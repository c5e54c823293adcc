"""`python -m autocompress` is `autocompress`."""

from autocompress.cli import main

if __name__ == "__main__":
    main()
