"""The survey from its command line: open the sets, go on with the answers, serve until Ctrl-C."""

import sys

from eval.survey.answers import Store
from eval.survey.classes import classes_of
from eval.survey.config import SurveyConfig
from eval.survey.order import draw_numbers
from eval.survey.pairs import check_alike, pixels_sha256, read_pairs
from eval.survey.rating import Rating
from eval.survey.server import SurveyServer
from robust_models.images import ImageSet, open_images
from robust_models.images.image_set import Numbered
from robust_models.runtime.command import Summary
from robust_models.runtime.signals import Interrupted


def run_survey(config: SurveyConfig) -> Summary:
    """Blocks until Ctrl-C or SIGTERM, which is how a survey ends."""
    rating = prepare(config)
    with SurveyServer(rating, ties=config.ties, port=config.port, host=config.host, key=config.token) as server:
        try:
            print(f"survey at {server.url} {server.reach}; Ctrl-C ends it, the same command goes on", file=sys.stderr)
            server.serve_forever()
        except (KeyboardInterrupt, Interrupted):
            pass
        answers, raters = server.rating.store.count()
        return {"out": str(config.out), "answers": answers, "raters": raters}


def prepare(config: SurveyConfig) -> Rating:
    """The survey, ready to be served. UserError where sets, labels or the file of answers do not fit."""
    before, after = open_images(config.before), open_images(config.after)
    check_alike(before, after)
    _warn_of_names(before, after)
    names = classes_of(before, after, config)
    numbers = draw_numbers(config.seed, len(before), config.pairs)
    classes = {number: None if names is None else names[number] for number in numbers}
    pairs = read_pairs(before, after, numbers)
    meta = {
        "before": str(config.before),
        "after": str(config.after),
        "images": len(before),
        "size": before.size,
        "sha256": {"before": pixels_sha256(pairs.before), "after": pixels_sha256(pairs.after)},
        "settings": config.settings,
    }
    store = Store(config.out, meta, classes)
    return Rating(store, pairs, classes, config.asked, config.checks, config.seed)


def _warn_of_names(before: ImageSet, after: ImageSet) -> None:
    """Pairs go by order; files of other names may be other images."""
    if isinstance(before.names, Numbered) or isinstance(after.names, Numbered):
        return
    for i, (one, other) in enumerate(zip(before.names, after.names, strict=True)):
        if one != other:
            print(f"warning: image {i} is called {one} before and {other} after; pairs go by order", file=sys.stderr)
            return
