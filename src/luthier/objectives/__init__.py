"""One file per objective: examples, inputs, loss."""
