"""The run directory: write, tail, index, compare. Standard library only; every file can be read while a run goes on."""
