"""The one exception natal raises for a mistake its user can mend."""


class NatalError(ValueError):
    """A mistake the user can mend: one line naming the argument, the value and the cure.

    The command line prints it and exits with status 2; nothing has been trained or written when it is raised
    for bad input.
    """
