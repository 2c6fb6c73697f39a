"""`python -m tokensieve`, for `accelerate launch -m tokensieve ...`."""

from tokensieve.cli import main

if __name__ == "__main__":
    main()
