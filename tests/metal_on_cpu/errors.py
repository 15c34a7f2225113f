"""The error of a kernel that is wrong."""


class MslError(Exception):
    """A kernel does not compile, or breaks a rule of Metal while it runs: see the message."""
