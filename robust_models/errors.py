"""The one exception meant for people: bad input, said in one line."""


class UserError(ValueError):
    """What was wrong, what came, what to do. Command lines print it as one line and exit with status 2."""
