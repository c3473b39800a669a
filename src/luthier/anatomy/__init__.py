"""Where the parts of a model are, by role, and how adapters go around them."""
