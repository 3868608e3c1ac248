"""What is measured inside a model: one file an instrument, each with a declared view."""
