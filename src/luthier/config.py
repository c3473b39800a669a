"""YAML to frozen dataclasses, strictly: every mistake of a file at once, each with its line."""


class RunFailed(Exception):
    """The run itself failed, not what the user wrote: NaN in the loss, no memory. Exit code 1."""
