"""Small tasks with known answers that tell architectures apart in minutes: one file each, found by `registry`."""
