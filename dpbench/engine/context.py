"""Whether a sample fits into the model's context: decided by its unpruned prompt, so that all methods answer the same.

A method that keeps fewer tokens could still read a prompt that the unpruned model cannot. Scores over different samples
do not compare, so such a sample is left out for every method.
"""

from __future__ import annotations

from dpbench.backbones.base import Backbone, Prompt


def explain_overflow(backbone: Backbone, prompt: Prompt, max_new_tokens: int) -> str | None:
    """Return why a prompt and its longest answer do not fit into the model's context, or None if they do.

    Args:
        backbone: has the context, `max_position_embeddings` of its decoder's configuration.
        prompt: unpruned, its images at their own size.
        max_new_tokens: length limit of the answer.
    """
    context = backbone.decoder.config.max_position_embeddings
    length = count_positions(prompt)
    if length + max_new_tokens <= context:
        return None
    return (
        f"too long: {length} positions unpruned and {max_new_tokens} for the answer, the model's context is {context}"
    )


def count_positions(prompt: Prompt) -> int:
    """Return how many positions a prompt takes: its tokens, or up to the largest of M-RoPE's position ids."""
    return len(prompt.ids_L) if prompt.positions_PL is None else int(prompt.positions_PL.max()) + 1
