"""Models whose state is a readable distribution over words (`homunculi.parts.readable`), one file each."""
