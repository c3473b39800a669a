"""List the plug-ins of a shelf, or all shelves."""


def list_() -> None:
    """List the plug-ins."""
