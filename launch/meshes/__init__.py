"""Meshes of ranks before they are made: what a step would take on each, and which is taken."""
