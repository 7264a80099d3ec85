"""bigroc studio [--ckpt NAME_OR_FILE] [--field value ...]; `python -m refine studio` is the same."""

import sys

from refine.studio.config import StudioConfig
from robust_models.checkpoints.checks import check_names
from robust_models.runtime.command import Command, Summary
from robust_models.runtime.signals import Interrupted

EXAMPLES = """\
  bigroc studio --ckpt cifar10-l2-small
  bigroc studio --ckpt CHECKPOINT.pt --images IMAGES --out pictures
On another machine: ssh -L 8766:127.0.0.1:8766 MACHINE, and the address that the studio says, here.
"""


def run_studio(config: StudioConfig) -> Summary:
    """Blocks until Ctrl-C or SIGTERM, which is how a studio ends."""
    from refine.studio.server import StudioServer

    with StudioServer(config) as server:
        try:
            print(
                f"studio at {server.url} for people on this machine; {server.precision}; Ctrl-C ends it",
                file=sys.stderr,
                flush=True,
            )
            server.serve_forever()
        except (KeyboardInterrupt, Interrupted):
            pass
    saved = sum(1 for _ in config.out.glob("*/settings.json"))
    return {"out": str(config.out), "saved": saved}


def _format_summary(summary: Summary) -> str:
    return f"{summary['saved']} pictures with their commands in {summary['out']}"


STUDIO = Command(
    name="bigroc studio",
    about="A local page on which you change images with a robust classifier, live.",
    schema=StudioConfig,
    work=run_studio,
    format_summary=_format_summary,
    examples=EXAMPLES,
    check=check_names,
)
