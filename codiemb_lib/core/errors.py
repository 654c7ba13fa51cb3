"""What goes wrong in a way that the user can mend."""

from __future__ import annotations

import logging
from functools import cache


class CodiembError(Exception):
    """The base of all our errors: the message says what was expected, found, and what to do.

    Attributes:
        status: With which the command `codiemb` ends: 2 where it was asked for what cannot be done,
            1 where the work itself failed.
    """

    status = 2


@cache
def say_once(message: str) -> None:
    """Warn of what happened to the user's data, at every door and once a process."""
    logging.getLogger(__name__).warning(message)
