"""The one exception meant for people: bad input, said in one line."""


class UserError(ValueError):
    """What was wrong, what came, what to do. Command lines print it as one line and exit with status 2.

    File names may hold line ends and bytes that are no text: in the message they stand as escapes (`\\n`, `\\udce9`).
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("".join(_visible(character) for character in str(message)))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
