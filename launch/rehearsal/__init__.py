"""A generation without weights or values, to see what memory it takes."""
