"""A fine-tuned model is its base plus a delta: fine-tuning methods as parts that compose."""

__version__ = "0.1.0"
