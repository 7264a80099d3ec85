"""A small transformer from texts to embeddings, over a vocabulary of whole words."""

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robust_models.errors import UserError

_WORD = re.compile(r"[a-z0-9']+")


class TextTower(nn.Module):
    """Texts -> embeddings [T,embedding], not normalised: words and their places, a transformer, their mean.

    The words are what it was trained on; it knows no others.
    """

    def __init__(self, words: Sequence[str], embedding: int, *, width: int = 64, layers: int = 2, longest: int = 16):
        super().__init__()
        self.words, self.longest = tuple(words), longest
        self._number = {word: i for i, word in enumerate(self.words, start=1)}  # 0 fills up
        self.embed = nn.Embedding(len(self.words) + 1, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(longest, width))
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 32), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.project = nn.Linear(width, embedding, bias=False)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Numbers of the words, [T,longest] int64, 0 behind a text's last. UserError for a word that is not known."""
        rows = [[self._known(word, text) for word in words_of(text)] for text in texts]
        for row, text in zip(rows, texts, strict=True):
            if not 0 < len(row) <= self.longest:
                raise UserError(f"prompt: {text!r} has {len(row)} words; this model reads 1 to {self.longest}")
        return torch.tensor([row + [0] * (self.longest - len(row)) for row in rows])

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [T,longest] -> embeddings [T,embedding]."""
        is_filling = tokens == 0
        seen = self.layers(self.embed(tokens) + self.places, src_key_padding_mask=is_filling)
        seen = seen.masked_fill(is_filling[..., None], 0).sum(dim=1) / (~is_filling).sum(dim=1, keepdim=True)
        return self.project(seen)

    def _known(self, word: str, text: str) -> int:
        if word in self._number:
            return self._number[word]
        near = difflib.get_close_matches(word, self.words, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(self.words)}"
        raise UserError(f"prompt: {text!r}: this model was not trained on the word {word!r}; {hint}")


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return _WORD.findall(text.lower())
