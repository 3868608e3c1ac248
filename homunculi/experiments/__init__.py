"""Experiments: each plans what to run or to change and computes a verdict."""
