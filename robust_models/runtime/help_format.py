"""How --help looks: wrapped to the terminal."""

import argparse
import re
import textwrap
from typing import Any

PROGRAMS = ("bigroc", "torchrun", "python")


class HelpFormatter(argparse.HelpFormatter):
    """Wraps everything to the terminal: paragraphs at words, commands with a backslash, so that they can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(f"{_wrapped(indent + line, width)}\n" for line in text.splitlines())

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        if usage is None:
            return super()._format_usage(usage, actions, groups, prefix)
        text = f"usage: {usage % {'prog': self._prog}}"
        return textwrap.fill(text, self._width, subsequent_indent=" " * 7, break_on_hyphens=False) + "\n\n"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = re.match(" *", line)[0]  # type: ignore[index]
    is_command = line.strip().startswith(PROGRAMS)
    columns = re.match(r" *\S+  +", line)  # "  name  what it is"
    hanging = " " * len(columns[0]) if columns and not is_command else indent + "    " * bool(indent)
    end = " \\" if is_command else ""
    kept = re.sub(r"(--\S+) (?=[^-\s])", "\\1\0", line)  # a flag and its value stay together
    parts = textwrap.wrap(
        kept, width - len(end), subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )
    return f"{end}\n".join(parts).replace("\0", " ")
