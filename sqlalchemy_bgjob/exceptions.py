"""What the library raises: one root, few leaves, each with its data as attributes.

``Exception.__init__`` gets the data and ``__str__`` builds the sentence, so errors survive
pickling. No sentence holds a value of a job's arg: messages end up in logs.
"""


class BGJobError(Exception):
    """The root of all errors of this library."""


class InvalidArg(BGJobError, ValueError):  # noqa: N818 - names say what is wrong
    """An arg can't be stored, or what is stored is not what the handler takes."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"invalid arg at {self.path}: {self.reason}"
