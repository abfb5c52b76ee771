"""The only code that knows peft, Trainer, trl and accelerate internals."""
