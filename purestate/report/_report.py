"""What all reports share, which is in ``view``: an explanation of a checkpoint, below this room, is a report as well."""

from purestate.view._report import Report, fragment, plain, seconds

__all__ = ["Report", "fragment", "plain", "seconds"]
