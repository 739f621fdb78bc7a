"""Outlines of the four shapes: signed distance and area.

The size of a shape is its radius, about half of its width.
"""

import math

from torch import Tensor, maximum

SQUARE_HALF_SIDE = 0.86
TRIANGLE_INRADIUS = 0.52
RING_RADIUS, RING_HALF_WIDTH = 0.75, 0.27

UNIT_AREA = {
    "circle": math.pi,
    "square": 4 * SQUARE_HALF_SIDE**2,
    "triangle": 3 * math.sqrt(3) * TRIANGLE_INRADIUS**2,
    "ring": 4 * math.pi * RING_RADIUS * RING_HALF_WIDTH,
}
"""Area of each shape at radius 1."""


def distance(shape: str, dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    """Signed distance to the outline of a shape, pixels; negative inside.

    Args:
        shape: of `UNIT_AREA`.
        dx, dy: from the shape's centroid to the pixels; y grows downwards.
        radius: size of the shape, pixels.
    """
    if shape == "circle":
        return (dx * dx + dy * dy).sqrt() - radius
    if shape == "ring":
        to_middle = ((dx * dx + dy * dy).sqrt() - RING_RADIUS * radius).abs()
        return to_middle - RING_HALF_WIDTH * radius
    if shape == "square":
        return maximum(dx.abs(), dy.abs()) - SQUARE_HALF_SIDE * radius
    # A triangle that stands on its base: the farthest outside any of its three sides.
    slanted = math.sqrt(0.75) * dx.abs() - 0.5 * dy
    return maximum(slanted, dy) - TRIANGLE_INRADIUS * radius


def radius_of(shape: str, area: float) -> float:
    """Radius at which a shape has an area, pixels."""
    return math.sqrt(area / UNIT_AREA[shape])
