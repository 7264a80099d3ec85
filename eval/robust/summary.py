"""The summary of `robust` in words."""

from collections.abc import Sequence

from robust_models.runtime.command import Summary


def format_robust(summary: Summary) -> str:
    """Accuracies with their intervals, the attack, and what the reader has to know beside them."""
    count = f"N = {summary['n']}" + (f" (the first of {summary['data_n']})" if summary["n"] < summary["data_n"] else "")
    lines = [f"clean accuracy  {_percent(summary['clean_accuracy'], summary['clean_interval'])}"]
    for result in summary["results"]:
        ball = f"{summary['norm']} eps {result['eps']:g}"
        lines.append(f"robust accuracy {_percent(result['robust_accuracy'], result['interval'])} at {ball}")
        if result["outside_ball"]:
            lines.append(f"  {result['outside_ball']} fooled only from outside the ball: they count as robust")
    if len(summary["results"]) > 1:
        lines.append("an image broken at a smaller eps counts as broken at the larger ones, and is not attacked again")
    image, classifier = summary["image_size"], summary["classifier_size"]
    if image != classifier:
        sizes = f"images of {image} px, resized inside the classifier to its {classifier} px"
        lines.append(f"{sizes} (bilinear, antialiased); eps is of the images as they are")
    precision = f"{summary['precision']} ({summary['precision_reason']})"
    runs = f"{summary['restarts']} restart(s), {precision}; {summary['wall_s']:.1f} s"
    lines.append(f"{count}; {_attack_in_words(summary)}, {runs}")
    lines += [f"warning: {warning}" for warning in summary["warnings"]]
    return "\n".join(lines + _sanity_in_words(summary.get("sanity")))


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
