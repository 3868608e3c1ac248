"""What a model is worth: loss and bits per byte, and text."""
