"""ratebridge: answers a trading platform's stakes in euro, exactly and in milliseconds."""

__version__ = "0.1.0"
