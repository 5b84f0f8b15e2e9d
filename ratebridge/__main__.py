"""`python -m ratebridge`."""

from .cli import main

main()
