"""The one exception type that stands for a mistake in what the user gave."""


class InputError(ValueError):
    """A flag, file, address or data set that cannot be used as given.

    The message says where the mistake is, which value was met, and what to do. Commands print it
    without a traceback and end with exit code 2.
    """
