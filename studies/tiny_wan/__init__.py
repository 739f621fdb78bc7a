"""A tiny Wan: the real model classes at a few million weights, trained on drawn clips."""
