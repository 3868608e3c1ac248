"""Architectures, one file each. `build` makes a model by name."""

from .registry import Architecture, architecture, build, get, name_of, names

__all__ = ["Architecture", "architecture", "build", "get", "name_of", "names"]
