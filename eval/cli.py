"""bigroc eval robust|certify|gradients|quality|statistics|study|survey [--field value ...]"""

from collections.abc import Sequence

from eval.certify.config import CertifyConfig
from eval.certify.run import check_plot, format_certify, run_certify
from eval.gradients.config import GradientsConfig
from eval.gradients.run import format_gradients, run_gradients
from eval.quality.config import FeatureFlags, QualityConfig, StatisticsConfig
from eval.quality.run import format_quality, run_quality
from eval.quality.statistics import format_statistics, run_statistics
from eval.robust.config import RobustConfig
from eval.robust.run import run_robust
from eval.robust.summary import format_robust
from eval.study.cli import STUDY
from eval.survey.cli import SURVEY
from robust_models.checkpoints.checks import check_names
from robust_models.features.extractor import check_features, each_space
from robust_models.runtime.command import Command, Described, OneOf, run

EXAMPLES = """\
  bigroc eval robust --ckpt cifar10-l2-small --data test.npz --norm l2 --eps 0.5 --attack pgd --steps 20 --json
  bigroc eval robust --ckpt cifar10-l2-small --data test.npz --eps 0.25,0.5,1 --attack autoattack --state aa.json
  bigroc eval robust --ckpt cifar10-l2-small --data test.npz --eps 0.5 --attack foolbox:L2PGD --sanity
  bigroc eval robust --ckpt cifar10-l2-small --data test.npz --threats l2:0.5,linf:8/255 --calibration --ood OTHER
  torchrun --nproc-per-node 8 --no-python bigroc eval robust --ckpt CHECKPOINT.pt --data cifar10 --attack autoattack
  bigroc eval certify --ckpt MINE.safetensors --data test.npz --sigma 0.25 --n 10000 --state certificates.jsonl
  bigroc eval gradients --ckpt cifar10-l2-small --data test.npz --reference train.npz
  bigroc eval quality --images generated.npz --reference train.npz --features classifier:cifar10-l2-small
  bigroc eval quality --images generated/ --reference train/ --metrics fid,is,kid,prc,sfid --protocol tf --json
  bigroc eval quality --images IMAGES --reference VIRTUAL_imagenet256.npz --metrics fid,sfid,prc --protocol adm
  torchrun --nproc-per-node 8 --no-python bigroc eval quality --images generated/ --reference stats.npz --intervals 200
  bigroc eval statistics --images train.npz --features inception --out stats.npz
  bigroc study --config ablation_classifier.yaml --quick
  bigroc survey --before generated.npz --after refined.npz --out answers.db
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that argv names; the exit status (0 done, 1 part of it failed, 2 a mistake of the caller)."""
    return run(EVAL, argv)


def _check_features(config: FeatureFlags) -> None:
    for name, settings in each_space(config.features, weights=config.weights, protocol=config.protocol):
        check_features(name, **settings)
    check_names(config)


def check_certify(config: CertifyConfig) -> None:
    """UserError, as certify would raise it, before any file is read."""
    check_names(config)
    check_plot(config.plot)


COMMANDS: dict[str, Described] = {
    "robust": Command(
        name="bigroc eval robust",
        about="Clean and robust accuracy of a classifier, and what else its outputs are worth.",
        schema=RobustConfig,
        work=run_robust,
        format_summary=format_robust,
        examples=EXAMPLES,
        check=check_names,
    ),
    "certify": Command(
        name="bigroc eval certify",
        about="Certified accuracy by randomized smoothing: what no attack of this L2 length can change.",
        schema=CertifyConfig,
        work=run_certify,
        format_summary=format_certify,
        examples=EXAMPLES,
        check=check_certify,
    ),
    "gradients": Command(
        name="bigroc eval gradients",
        about="How far a classifier's input gradients point along the data: choose a refiner before refining.",
        schema=GradientsConfig,
        work=run_gradients,
        format_summary=format_gradients,
        examples=EXAMPLES,
        check=check_names,
    ),
    "quality": Command(
        name="bigroc eval quality",
        about="How good images are: FID, Inception Score, KID, precision and recall, sFID.",
        schema=QualityConfig,
        work=run_quality,
        format_summary=format_quality,
        examples=EXAMPLES,
        check=_check_features,
    ),
    "statistics": Command(
        name="bigroc eval statistics",
        about="Store an image set's statistics, to compare others with.",
        schema=StatisticsConfig,
        work=run_statistics,
        format_summary=format_statistics,
        examples=EXAMPLES,
        check=_check_features,
    ),
    "study": STUDY,
    "survey": SURVEY,
}

EVAL = OneOf("bigroc eval", "Measures classifiers and image sets.", "measurement", COMMANDS, EXAMPLES)
