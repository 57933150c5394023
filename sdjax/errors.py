"""Errors that a user can do something about; imports nothing, so that any file may raise them."""


class InputError(ValueError):
    """A config, a file or a command that cannot be used; the text says what was expected."""
