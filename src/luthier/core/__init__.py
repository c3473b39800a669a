"""The parts of a transformer; no model names."""
