"""What is wrong with an encoder or with what it is given."""

from codiemb_lib.core import CodiembError


class EncoderError(CodiembError, ValueError):
    """An encoder is unknown, damaged, or says something that cannot be run."""


def refuse(is_so: object, message: str) -> None:
    """Raise an EncoderError with this message if something is so."""
    if is_so:
        raise EncoderError(message)
