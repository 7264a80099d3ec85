"""The cells as a LaTeX table: booktabs' rules where it is loaded, plain lines where not."""

from eval.study.report.digest import BEST, TIED, Digest
from eval.study.report.tables import Entry, cells_table
from eval.study.report.words import MINUS, NONE

_RULES = "".join(f"\\providecommand{{\\{rule}}}{{\\hline}}\n" for rule in ("toprule", "midrule", "bottomrule"))
_NOTE = (
    "% Brackets: 95 % intervals. Star: significantly lower than all others of its images; approx: no\n"
    "% significant difference from the lowest. Bold difference: significant; with an unequal sign, another\n"
    "% judge sees another change.\n"
)
_MARKS = {BEST: r"$^{\star}$", TIED: r"$^{\approx}$", "": ""}
_ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # would else be read as an option of the \\ before it
    "*": "{*}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "é": r"\'e",
    "∞": r"$\infty$",
    NONE: "--",
    MINUS: "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def latex_text(digest: Digest) -> str:
    """A tabular of every cell, by image set; the lowest distance bold where its difference is significant."""
    whole = cells_table(digest, digest.rows)
    columns = 1 + len(whole.axes) + len(whole.headings)
    lines = [
        f"\\begin{{tabular}}{{l{'l' * len(whole.axes)}{'r' * len(whole.headings)}}}",
        r"\toprule",
        _line(["Classifier", *map(latex, (*whole.axes, *whole.headings))]),
    ]
    for one in digest.sets:
        lines += [r"\midrule", _line([rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{latex(one.name)}}}}}"])]
        for row, (axes, entries) in zip(one.rows, cells_table(digest, one.rows).rows, strict=True):
            name = latex(row.cell.axes.classifier or "raw")
            numbers = [_number(entry, row.mark if i == 0 else "") for i, entry in enumerate(entries)]
            if row.cell.error:
                numbers = [rf"\multicolumn{{{len(whole.headings)}}}{{l}}{{failed}}"]
            lines.append(_line([name, *map(latex, axes), *numbers]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    return _NOTE + _RULES + "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """The text as LaTeX prints it, on one line."""
    return "".join(_ESCAPED.get(char, char) for char in " ".join(text.split()))


def _number(entry: Entry, mark: str) -> str:
    value = latex(entry.value)
    bold = mark == BEST or entry.sign != ""
    value = (rf"\textbf{{{value}}}" if bold else value) + _MARKS[mark] + (r"$^{\neq}$" if entry.contested else "")
    return f"{value} {latex(entry.interval)}".rstrip()


def _line(parts: list[str]) -> str:
    return " & ".join(parts) + r" \\"
