"""The two sides of each benchmark, every one a process of its own."""
