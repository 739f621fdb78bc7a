"""What makes a loaded pipeline smaller or faster: offloading, tiling, compiling, step caches."""
