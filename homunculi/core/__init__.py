"""Values that every room shares: schedule, modulation, taps, output, cache, budget."""
