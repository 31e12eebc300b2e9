"""The denoiser: maps throttled tokens back to what the frozen LLM expects, in training only (DiffPrune section 4.4).

One Transformer block in a residual bottleneck under an identity attention mask: a token sees only itself, so that no
throttled content can come back from another token. Attention over all tokens is the ablation.

Shape letters: R rows (one view each), N visual tokens of a view, D the LLM's width, E the bottleneck's.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dpbench.diffprune.scorer import ScorerSize, encoder
from dpbench.diffprune.throttler import root_mean_square

GAIN = 0.01
"""How fast it departs from the identity. At 1 the scorer of toy-llava learns slower: the denoiser first learns what all
captions have in common, for which no image is needed."""


class Denoiser(nn.Module):
    """x + GAIN rms(x) up(block(down(norm(x)))); it begins as the identity.

    What it adds is in units of each token's root mean square, so that tokens of another scale train alike.

    Args:
        size: the scorer's shape, whose hidden width is the bottleneck's.
        attention: "identity" keeps tokens apart, "global" lets each see its whole view.
    """

    def __init__(self, size: ScorerSize, attention: Literal["identity", "global"] = "identity") -> None:
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(size.width)
        self.down = nn.Linear(size.width, size.hidden)
        self.block = encoder(size.hidden, size.heads, 1, size.ffn)
        self.up = nn.Linear(size.hidden, size.width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens_RND: Tensor, valid_RN: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape and type.

        Args:
            tokens_RND: throttled tokens.
            valid_RN: bool, False for padding; only global attention needs it.
        """
        hidden = self.down(self.norm(tokens_RND))
        if self.attention == "identity":
            single_tokens = hidden.flatten(0, 1)[:, None]  # sequences of one token: the identity mask without its N x N
            hidden = self.block(single_tokens).view(hidden.shape)
        else:
            hidden = self.block(hidden, src_key_padding_mask=None if valid_RN is None else ~valid_RN)
        scale = GAIN * root_mean_square(tokens_RND)
        denoised: Tensor = tokens_RND + scale * self.up(hidden).to(tokens_RND.dtype)
        return denoised
