"""The two ways a command can end badly, each told to the user in one line."""


class AdAutoMixError(Exception):
    """Base of every error that the user can mend; its text names the thing and the remedy."""

    exit_status = 1


class UsageError(AdAutoMixError):
    """A setting, file or folder is not what it should be: nothing was started."""

    exit_status = 2


class RunError(AdAutoMixError):
    """A run began and could not go on; what was saved is still there."""

    exit_status = 1
