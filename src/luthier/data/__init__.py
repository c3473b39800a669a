"""Streams of token ids and examples."""
