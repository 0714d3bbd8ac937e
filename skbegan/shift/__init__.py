"""Dataset shift: whether a new batch is like those of training, what to expect of it, and how to adapt to it."""
