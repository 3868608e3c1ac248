"""Architectures, one file each. `build` makes a model by name."""

from .registry import Architecture, Part, architecture, build, get, including, name_of, names, without

__all__ = ["Architecture", "Part", "architecture", "build", "get", "including", "name_of", "names", "without"]
