"""bigroc survey [report ANSWERS] [--field value ...]"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eval.survey.config import SurveyConfig, SurveyReportConfig
from eval.survey.serve import run_survey
from eval.survey.summary import format_survey, format_survey_report
from eval.survey.tally import run_survey_report
from robust_models.runtime.command import Command

EXAMPLES = """\
  bigroc survey --before generated.npz --after refined.npz --out answers.db
  bigroc survey --before generated/ --after refined/ --out answers.db --pairs 50 --show-class --ties false
  bigroc survey report answers.db
  bigroc survey report answers.db --min-checks 0.9 --json
"""

_REPORT = Command(
    name="bigroc survey report",
    about="What the raters of a survey prefer, how sure that is, and how far they agree.",
    schema=SurveyReportConfig,
    work=run_survey_report,
    format_summary=format_survey_report,
    examples=EXAMPLES,
    positionals=("answers",),
)


@dataclass(frozen=True)
class SurveyCommand(Command):
    """Serves the survey or, where the first word is `report`, says what came of it."""

    commands: Mapping[str, Command] = field(default_factory=lambda: {"report": _REPORT})

    def __call__(self, argv: Sequence[str]) -> int:
        return self.commands[argv[0]](argv[1:]) if argv and argv[0] in self.commands else super().__call__(argv)


SURVEY = SurveyCommand(
    name="bigroc survey",
    about="A local page where people say, blind, which of two images looks more real; `survey report` sums it up.",
    schema=SurveyConfig,
    work=run_survey,
    format_summary=format_survey,
    examples=EXAMPLES,
)
