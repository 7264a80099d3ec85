"""What a reader of the study's numbers should know before believing them."""

from collections.abc import Iterator

from eval.quality.metrics import METRICS, least_images
from eval.study.report.digest import Digest, accuracy_at, radii
from eval.study.report.words import counted, eps_words, judge_words, listed, norm_words
from eval.study.results import ClassifierResult
from robust_models.features.efficientnet import limits_of

STANDARD = "none"  # the threat model of a classifier that was not trained to withstand anything
ROBUST_SHARE = 0.5  # of the clean accuracy, under attack at the smallest radius: below, it is called not robust


def cautions(digest: Digest) -> list[str]:
    """A sentence each: judges of the refiners' kind, few images, refiners not robust, large balls, judges' limits."""
    judges = [digest.results.judge, *(judge.judge for judge in digest.results.others)]
    limits = [f"{limits}." for name in judges if (limits := limits_of(name))]
    return [*_kin(digest), *_few(digest), *_chosen(digest), *_not_robust(digest), *_large(digest), *limits]


def _kin(digest: Digest) -> Iterator[str]:
    results = digest.results
    if results.kin:
        yield (
            f"The judge, {judge_words(results.judge)}, was trained on the same classes as {listed(results.kin)}: what "
            "such a classifier adds, it may see as an improvement where people see none; look at the images, or "
            "measure with efficientnet-lite0-128, inception or dinov2."
        )


def _few(digest: Digest) -> Iterator[str]:
    sizes = [row.cell.num_images for row in digest.rows if row.cell.num_images]
    name = "kid" if digest.measure == "KID" else "fid"
    least = least_images(METRICS[name], digest.num_features)
    if sizes and min(sizes) < least:
        why = "its intervals are wide" if name == "kid" else "it is biased upwards, so compare equal N only"
        yield f"{counted(min(sizes), 'image')} are few for a {digest.measure}, which wants {least:,}: {why}."


def _chosen(digest: Digest) -> Iterator[str]:
    searched = [row for row in digest.rows if row.cell.axes.eps == "auto" and not row.cell.error]
    if any(not row.cell.is_left for row in searched):
        yield (
            "eps auto was chosen on half of the very images that are scored (1,000 at most), by the first judge: its "
            "distance is a little lower than on images that had no part in it."
        )
    if left := [f"{row.cell.axes.drawn} by {row.label}" for row in searched if row.cell.is_left]:
        yield f"eps auto found no sure gain and left the images as they came (eps found 0): {listed(left)}."


def _not_robust(digest: Digest) -> Iterator[str]:
    weak = []
    used = {row.cell.axes.classifier for row in digest.rows}
    for one in digest.results.classifiers:
        if one.name in used and (words := _weakness(digest, one)):
            weak.append(f"{one.name} ({words})")
    if weak:
        are = "is" if len(weak) == 1 else "are"
        yield f"{listed(weak)} {are} not robust: such input gradients look like noise, and so does what they change."


def _weakness(digest: Digest, one: ClassifierResult) -> str:
    """Why the classifier is not robust, in words; "" where it is, or nobody knows."""
    clean = accuracy_at(one, "", 0)
    at = [(radius, found) for radius in radii(digest) if (found := accuracy_at(one, *radius)) is not None]
    if clean is not None and at:
        (norm, eps), found = at[0]
        if found.value >= ROBUST_SHARE * clean.value:
            return ""
        return f"{100 * found.value:.0f} % right at {norm_words(norm)} eps {eps_words(eps, norm)}"
    return "trained without attacks" if one.threat_model == STANDARD else ""


def _large(digest: Digest) -> Iterator[str]:
    for norm, distance in digest.results.neighbours.items():
        eps = [row.cell.eps for row in digest.rows if row.cell.axes.norm == norm and not row.cell.error]
        if eps and max(eps) > distance:
            yield (
                f"eps {eps_words(max(eps), norm)} in {norm_words(norm)} exceeds {eps_words(distance, norm)}, the "
                "median distance of a real image to its nearest neighbour: such a ball holds quite other images."
            )
