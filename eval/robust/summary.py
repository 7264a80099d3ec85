"""The summary of `robust` in words."""

from collections.abc import Sequence

from robust_models.runtime.command import Summary


def format_robust(summary: Summary) -> str:
    """Accuracies with their intervals, the attack, and what the reader has to know beside them."""
    count = f"N = {summary['n']}" + (f" (the first of {summary['data_n']})" if summary["n"] < summary["data_n"] else "")
    lines = [f"clean accuracy  {_percent(summary['clean_accuracy'], summary['clean_interval'])}"]
    for result in summary["results"]:
        ball = _ball(result["norm"], result["eps"])
        lines.append(f"robust accuracy {_percent(result['robust_accuracy'], result['interval'])} at {ball}")
        if result["outside_ball"]:
            lines.append(f"  {result['outside_ball']} fooled only from outside the ball: they count as robust")
    if worst := summary.get("worst_case"):
        lines.append(f"robust accuracy {_percent(worst['robust_accuracy'], worst['interval'])} in all of them at once")
    if summary["balls_from"]:
        lines.append(f"balls: {summary['balls_from']}")
    if len({result["norm"] for result in summary["results"]}) < len(summary["results"]):
        lines.append("an image broken at a smaller eps counts as broken at the larger ones, and is not attacked again")
    image, classifier = summary["image_size"], summary["classifier_size"]
    if image != classifier:
        sizes = f"images of {image} px, resized inside the classifier to its {classifier} px"
        lines.append(f"{sizes} (bilinear, antialiased); eps is of the images as they are")
    precision = f"{summary['precision']} ({summary['precision_reason']})"
    runs = f"{summary['restarts']} restart(s), {precision}; {summary['wall_s']:.1f} s"
    lines.append(f"{count}; {_attack_in_words(summary)}, {runs}")
    lines += [f"warning: {warning}" for warning in summary["warnings"]]
    lines += _sanity_in_words(summary.get("sanity"))
    lines += _calibration_in_words(summary.get("calibration"))
    lines += _corruptions_in_words(summary.get("corruptions"))
    return "\n".join(lines + _ood_in_words(summary.get("ood"), summary))


def _ball(norm: str, eps: float) -> str:
    """With four digits; a radius in linf that is k/255 is also called so."""
    shown = f"{norm} eps {eps:.4g}"
    levels = 255 * eps
    return f"{shown} ({levels:.3g}/255)" if norm == "linf" else shown


def _attack_in_words(summary: Summary) -> str:
    first = summary["results"][0]
    if summary["attack"] != "pgd":
        members = first["settings"].get("members")
        return f"{summary['attack']} of {first['settings']['library']}" + (f": {', '.join(members)}" if members else "")
    step = f"of step {first['step_size']:g}" if len(summary["results"]) == 1 else "at each eps"
    return f"PGD-{first['steps']} {step}"


def _sanity_in_words(sanity: Summary | None) -> list[str]:
    if sanity is None:
        return []
    ground = f"{sanity['n']} images at {sanity['norm']} eps {sanity['eps']:g}"
    if not sanity["figures"]:
        return [f"sanity checks: nothing to check ({ground})"]
    return [f"warning: {text} ({ground})" for text in sanity["warnings"]] or [
        f"sanity checks: no sign of masked gradients ({ground})"
    ]


def _percent(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:.2f} % (95 %: {100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def _calibration_in_words(found: Summary | None) -> list[str]:
    if found is None:
        return []
    surer = "surer than right" if found["mean_confidence"] > found["accuracy"] else "less sure than right"
    return [
        f"calibration error {100 * found['ece']:.2f} % ({found['bins']} bins, N = {found['n']}; {surer} on average; a "
        f"calibrated classifier shows {_by_chance(found['by_chance'])})",
        f"  after scaling  {100 * found['ece_scaled']:.2f} % with temperature {found['temperature']:.3f}, fitted on "
        f"the other {found['n_fit']} images (calibrated: {_by_chance(found['by_chance_scaled'])})",
    ]


def _by_chance(mean_and_most: Sequence[float]) -> str:
    return f"{100 * mean_and_most[0]:.2f} %, rarely over {100 * mean_and_most[1]:.2f} %"


def _corruptions_in_words(found: Summary | None) -> list[str]:
    if found is None:
        return []
    missing = f"; not CIFAR-10-C's mean: {', '.join(found['missing'])} missing" if found["missing"] else ""
    width = max(map(len, found["accuracy"]))
    rows = [
        f"  {name:<{width}}  {100 * sum(shares) / len(shares):6.2f}  " + " ".join(f"{100 * s:6.2f}" for s in shares)
        for name, shares in found["accuracy"].items()
    ]
    return [
        f"under corruption {_percent(found['mean'], found['interval'])}, mean of {len(found['mean_of'])} corruptions "
        f"at 5 severities, N = {found['n']} each{missing}",
        f"  {'accuracy, %':<{width}}    mean  " + " ".join(f"{severity:6d}" for severity in range(1, 6)),
        *rows,
    ]


def _ood_in_words(found: Summary | None, summary: Summary) -> list[str]:
    if found is None:
        return []
    height, width = found["image_size"]
    own = summary["image_size"]
    size = "" if height == width == own else f", of {width}x{height} px where those of data have {own}"
    lines = [f"out-of-distribution AUROC of {summary['data']} against {found['path']} (N = {found['n']}{size})"]
    for name, area in found["auroc"].items():
        low, high = found["interval"][name]
        lines.append(f"  {name.replace('_', '-')} {area:.3f} (95 %: {low:.3f} to {high:.3f})")
    return lines
