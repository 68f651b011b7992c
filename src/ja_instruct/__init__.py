"""ja-instruct: turn a base language model into a Japanese instruction model."""

__version__ = "0.1.0"
