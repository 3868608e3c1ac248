"""Tensor modules that several architectures use."""
