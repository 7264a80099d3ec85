"""The one exception meant for people: bad input, said in one line."""

import difflib
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """What was wrong, what came, what to do. Command lines print it as one line and exit with status 2.

    File names may hold line ends and bytes that are no text: in the message they stand as escapes (`\\n`, `\\udce9`).
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("".join(_visible(character) for character in str(message)))


@contextmanager
def about_field(name: str) -> Iterator[None]:
    """A UserError inside begins with this field in place of ckpt, model or out: where another flag names the like."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for field in ("ckpt: ", "model: ", "out: "):
            text = text.removeprefix(field)
        raise UserError(f"{name}: {text}") from error


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def none_of(value: object, choices: Iterable[str]) -> str:
    """ "'l3' is none of l1, l2; did you mean l1?": for messages about a name that is not among the choices."""
    choices = list(choices)
    by_small_letters = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(str(value).casefold(), by_small_letters, n=1)
    hint = f"; did you mean {by_small_letters[near[0]]}?" if near else ""
    return f"{value!r} is none of {', '.join(choices)}{hint}"


# What decoding bytes that someone else wrote may raise, beside UserError; each becomes one line. (UserError, a
# ValueError, must be let through first.)
DECODING_FAILURES = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    AssertionError,
    SyntaxError,
    SystemError,
    Warning,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
)


def reason(error: BaseException) -> str:
    """What an exception says, short and on one line, for use in a UserError."""
    return " ".join(str(error).split())[:200] or type(error).__name__
