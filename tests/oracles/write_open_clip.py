"""open_clip 3.3 builds CLIPs, saves them as its trainer does, and embeds images: python -m ... OUT"""

import sys
from pathlib import Path

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from torchvision.transforms.functional import normalize

from tests.oracles.lively import lively, two_images

TEXT = {"context_length": 4, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
# The layouts of its own files ViT-B-32.json and so on: the large ViTs shorter, the ResNets narrower.
VIT_B_32 = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
SHORT = {"image_size": 28, "layers": 1, "patch_size": 14}
VIT_H_14 = {**SHORT, "width": 1280, "head_width": 80}
VIT_G_14 = {**SHORT, "width": 1408, "head_width": 88, "mlp_ratio": 4.3637}
VIT_BIGG_14 = {**SHORT, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231}
RN50 = {"image_size": 64, "layers": [3, 4, 6, 3], "width": 32, "patch_size": None}
RN101 = {"image_size": 96, "layers": [3, 4, 23, 3], "width": 16, "patch_size": None}
CLIPS = {  # embedding, tower, whether with OpenAI's approximation of GELU
    "vit_b_32_quickgelu": (512, VIT_B_32, True),
    "vit_b_32": (512, VIT_B_32, False),
    "vit_h_14_quickgelu": (1024, VIT_H_14, True),
    "vit_g_14": (1024, VIT_G_14, False),
    "vit_bigg_14": (1280, VIT_BIGG_14, False),
    "rn50_quickgelu": (1024, RN50, True),  # which only the text's transformer has
    "rn101": (512, RN101, False),
}

if __name__ == "__main__":
    out, expected = Path(sys.argv[1]), {}
    torch.manual_seed(0)
    for name, (embedding, tower, quick) in CLIPS.items():
        model = lively(CLIP(embedding, tower, TEXT, quick_gelu=quick))
        content = {"epoch": 3, "name": name, "state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}
        torch.save(content, out / f"{name}.pt")
        x = two_images(tower["image_size"])
        with torch.no_grad():
            embeddings = model.encode_image(normalize(x, [*OPENAI_DATASET_MEAN], [*OPENAI_DATASET_STD]))
        expected |= {name: embeddings, f"{name} x": x}
    torch.save(expected, out / "expected.pt")
