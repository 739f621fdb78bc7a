"""Studies: what launches nothing, from benchmarks to the training of the tiny model."""
