"""Comparing: many runs side by side."""
