"""The local page over a folder of runs: reading is free on this machine, acting needs the printed token. No torch."""
