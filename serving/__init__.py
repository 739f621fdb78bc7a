"""LVSA inside other engines: one folder each."""
