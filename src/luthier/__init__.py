"""Luthier builds, tunes and voices language models. A run = model x tuning x objective x parallel plan."""
