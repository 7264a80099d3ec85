"""Refine what a diffusers pipeline samples, before it becomes a file.

    pip install bigroc diffusers
    python examples/diffusers_pipeline.py google/ddpm-cifar10-32 --eps 1 --out samples

For whole sets there is bigroc refine --generator diffusers:google/ddpm-cifar10-32 (docs/generators.md).
Any pipeline that gives images as arrays (output_type="np") will do: its pixels are then in [0,1].
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import robust_models
from refine import Refiner


def refine_pipeline_output(pipe: Any, refiner: Refiner, y: Tensor | None = None, **call: Any) -> Tensor:
    """Images of pipe(**call), refined towards the classes y (None: what the refiner has), [N,3,H,W] in [0,1].

    A class-conditional pipeline: refine_pipeline_output(pipe, refiner, y, class_labels=y.tolist()).
    """
    sampled = pipe(**call, output_type="np").images  # float [N,H,W,3]
    return refiner(torch.as_tensor(sampled).permute(0, 3, 1, 2), y)


def save(x: Tensor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(robust_models.to_u8(x).permute(0, 2, 3, 1).contiguous().numpy()):
        Image.fromarray(pixels).save(folder / f"{i:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="a name on the Hugging Face hub, or a folder")
    parser.add_argument("--ckpt", default="cifar10-l2-small")
    parser.add_argument("--eps", type=float, default=1.0)
    parser.add_argument("--num-images", type=int, default=16)
    parser.add_argument("--inference-steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("samples"))
    args = parser.parse_args()

    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = DiffusionPipeline.from_pretrained(args.pipeline).to(device)
    refiner = Refiner(robust_models.load(args.ckpt).to(device), eps=args.eps)
    call = {"batch_size": args.num_images, "num_inference_steps": args.inference_steps}
    save(refine_pipeline_output(pipe, refiner, **call), args.out)
    print(f"{args.num_images} refined samples in {args.out}")


if __name__ == "__main__":
    main()
