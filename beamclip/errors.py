"""Errors that a command shows in one line, without a traceback: invalid input, or a failed result."""


class FailedRunError(RuntimeError):
    """A command ran to its end, but its result is a failure.

    The message is complete in itself. Commands print it without a traceback and end with exit code 1.
    """


class InputError(ValueError):
    """A flag, file, address or data set that cannot be used as given.

    The message says where the mistake is, which value was met, and what to do. Commands print it
    without a traceback and end with exit code 2.
    """
