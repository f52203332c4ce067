"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """A mistake in the user's input: one line naming the field, the value and the remedy.

    Stages print it on stderr without a traceback and exit with status 2.
    """
