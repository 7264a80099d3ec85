"""CLIP's vision transformer (Radford et al. 2021, arXiv:2103.00020) and a head: an image classifier."""

import torch
from torch import Tensor, nn

from robust_models.architectures.resnet import Activation

HEAD_WIDTH = 64  # channels of one attention head in all of OpenAI's encoders, and in most of open_clip's
# Width -> channels of one head, and between an MLP's two layers: open_clip's H, g, bigG and e. Others: 64, 4 widths.
_LARGE = {1280: (80, 5120), 1408: (88, 6144), 1664: (104, 8192), 1792: (112, 15360)}


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU with which OpenAI trained."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Attention, then two linear layers, both on normed tokens and both added to what came in."""

    def __init__(self, width: int, act: Activation) -> None:
        super().__init__()
        head_width, hidden = _LARGE.get(width, (HEAD_WIDTH, 4 * width))
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, max(1, width // head_width), batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, hidden))
        self.mlp.add_module("gelu", act())
        self.mlp.add_module("c_proj", nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N,T,width] -> tokens."""
        tokens = self.ln_1(x)
        x = x + self.attn(tokens, tokens, tokens, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Images [N,3,H,W] of image_size pixels -> embeddings [N,embedding]; names of tensors as in OpenAI's files."""

    def __init__(self, patch: int, image_size: int, width: int, layers: int, embedding: int, act: Activation) -> None:
        super().__init__()
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((image_size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Block(width, act) for _ in range(layers)))
        self.proj = nn.Parameter(scale * torch.randn(width, embedding))

    def forward(self, x: Tensor) -> Tensor:
        """x [N,3,H,W] -> embeddings [N,embedding], not normalised."""
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], dim=1)
        tokens = self.transformer.get_submodule("resblocks")(self.ln_pre(tokens + self.positional_embedding))
        return self.ln_post(tokens[:, 0]) @ self.proj


class ZeroShot(nn.Module):
    """Images -> scale times the cosine of their embedding and each class's (head.weight [classes,embedding])."""

    logit_scale: Tensor

    def __init__(self, visual: nn.Module, embedding: int, num_classes: int) -> None:
        super().__init__()
        self.visual, self.head = visual, nn.Linear(embedding, num_classes, bias=False)
        self.register_buffer("logit_scale", torch.tensor(100.0))  # the factor itself, not its logarithm

    def forward(self, x: Tensor) -> Tensor:
        """x [N,3,H,W] -> logits [N,classes]."""
        return self.head(self.logit_scale * nn.functional.normalize(self.visual(x), dim=1))


class LinearProbe(nn.Module):
    """Images -> a linear layer of their embedding."""

    def __init__(self, visual: nn.Module, embedding: int, num_classes: int) -> None:
        super().__init__()
        self.visual, self.head = visual, nn.Linear(embedding, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [N,3,H,W] -> logits [N,classes]."""
        return self.head(self.visual(x))


def clip_vit(*numbers: str | None, num_classes: int, act: Activation) -> nn.Module:
    """The classifier of a name's groups: patch, image size, width, layers, embedding, and "_linear" or None."""
    patch, image_size, width, layers, embedding = (int(number or 0) for number in numbers[:5])
    visual = VisionTransformer(patch, image_size, width, layers, embedding, act)
    return with_classes(visual, embedding, num_classes, linear=bool(numbers[5]))


def with_classes(visual: nn.Module, embedding: int, num_classes: int, *, linear: bool) -> nn.Module:
    """The encoder with a linear layer or a zero-shot head."""
    return (LinearProbe if linear else ZeroShot)(visual, embedding, num_classes)
