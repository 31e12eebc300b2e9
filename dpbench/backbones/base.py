"""What the engine needs of a backbone: prompts in, visual tokens out, embeddings back in.

Shape letters: L prompt positions, N visual tokens of one image, K rows kept, D the LLM's width, C the tower's width,
H heads, d one head's width, B prompts, I images, P position axes (1, or M-RoPE's 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL.Image import Image, Resampling
from PIL.Image import new as new_image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from dpbench.backbones.conversation import ConversationTokenizer, find_spans
from dpbench.backbones.finite import FiniteLogits
from dpbench.errors import ConfigError, ImageError, UnsupportedError, explain, format_value
from dpbench.machine.image_memory import explain_too_large
from dpbench.method import ImageTokens

_ORDINARY_SIZE = (90, 70)
"""Width and height of a picture that every processor must read; no tower's patches fill it."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """One image as its tower reads it.

    Attributes:
        values: the processor's pixel values: (3, S, S), (views, 3, S, S), or flattened patches.
        rows: how many placeholders the image has in a prompt.
        size: what else the tower must know: nothing, the original height and width, or the grid of patches.
    """

    values: Tensor
    rows: int
    size: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question as the LLM would read it unpruned: every row of every image has its own position.

    Attributes:
        ids_L: int64 token ids on the CPU, image placeholders expanded.
        spans: per image the first and one past the last of its placeholders.
        pixels: one entry per image.
        question: the bare question.
        positions_PL: int64 position ids where they are not 0..L-1: M-RoPE's time, row and column.
    """

    ids_L: Tensor
    spans: tuple[tuple[int, int], ...]
    pixels: tuple[Pixels, ...]
    question: str = ""
    positions_PL: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Features(ImageTokens):
    """One image through tower and projector, with the optional signals that were requested; `slot_N` is on the CPU.

    newline_D: what the LLM reads at the placeholders that no token fills (AnyRes ends each row so), or None.
    num_newlines: how many such placeholders the image has; rows that unpadding leaves without tokens count too.
    """

    newline_D: Tensor | None = None
    num_newlines: int = 0

    @property
    def num_read(self) -> int:
        """Return how many of the tokens the unpruned LLM reads."""
        return int((self.slot_N >= 0).sum())


class Backbone(ABC):
    """A vision-language model on transformers, behind the few calls the engine makes."""

    provides: frozenset[str]
    """Which optional fields of VisualTokens `encode` can fill."""
    mrope = False
    """Position ids have three axes, and kept tokens always keep theirs."""
    max_views = 1
    """The most views an image is cut into; a count under the per-view rule is shared over so many."""
    num_visual: int | None = None
    """Visual tokens of every image, or None where it follows the image's size."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name = name
        self.model = model.eval()
        self.processor = processor
        # Beams, penalties and lengths of the checkpoint's file would leak into greedy decoding.
        ends = model.generation_config.eos_token_id
        self.model.generation_config = GenerationConfig(
            eos_token_id=processor.tokenizer.eos_token_id if ends is None else ends,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        self.core = model.model
        self.decoder: Any = self.core.language_model
        """The text model: the module whose forward takes `inputs_embeds`, `attention_mask` and `position_ids`."""
        self.num_layers: int = len(self.decoder.layers)
        self.image_id: int = model.config.image_token_id
        self.conversation = ConversationTokenizer(processor.tokenizer, self.image_id)
        self.system = ""
        """A sentence before "USER:", in place of the processor's own chat template; empty for the template."""

    def check_settings(self) -> None:
        """Refuse a tokenizer or processor that cannot make this model's prompts.

        Raises:
            ConfigError: names what is wrong and what to do.
        """
        if not self.system and self.processor.chat_template is None:
            raise ConfigError(
                f"--backbone {self.name}: its processor has no chat template; give --prompt vicuna_v1 if it is a "
                "Vicuna, or add chat_template.jinja to the folder"
            )
        conversation = self._probe_conversation()
        token = self.processor.tokenizer.convert_ids_to_tokens(self.image_id)
        if token is None or conversation.count(token) != 1:
            raise ConfigError(
                f"--backbone {self.name}: its configuration marks images with the token {self.image_id}, which its "
                f"tokenizer calls {token!r} and its conversation does not contain once; give the tokenizer that "
                "belongs to the weights"
            )
        if self.model.generation_config.eos_token_id is None:
            raise ConfigError(
                f"--backbone {self.name}: neither its generation_config.json nor its tokenizer names the token that "
                "ends an answer; add eos_token to tokenizer_config.json"
            )
        self._check_preprocessing()

    def _probe_conversation(self) -> str:
        """Return a conversation about one image, after a check that its question is in it.

        Raises:
            ConfigError: the chat template cannot be read, or leaves out what is asked.
        """
        question = "What is this?"
        try:
            conversation = self.chat(1, question)
        except Exception as error:
            reason = explain(error)
        else:
            if conversation.count(question) == 1:
                return conversation
            reason = f"it makes {format_value(conversation)} of the question {question!r}"
        raise ConfigError(
            f"--backbone {self.name}: its chat template makes no conversation ({reason}); give the chat template that "
            "belongs to the weights"
        )

    def _check_preprocessing(self) -> None:
        """Refuse a processor that cannot make a picture ready for the tower, whatever the reason.

        Raises:
            ConfigError: says what it raised.
        """
        try:
            self.preprocess([new_image("RGB", _ORDINARY_SIZE)])
        except Exception as error:
            raise ConfigError(
                f"--backbone {self.name}: its processor {type(self.processor.image_processor).__name__} cannot read a "
                f"picture ({explain(error)}); give the processor that belongs to the weights"
            ) from error

    @property
    def resample(self) -> Resampling:
        """Return the processor's own filter, for images that are made smaller before it sees them."""
        return Resampling(int(self.processor.image_processor.resample))

    def require_equal(self, setting: str, value: Any, expected: Any) -> None:
        """Refuse a setting of the model or its processor that would make it read images in another way.

        Raises:
            ConfigError: names the setting, its value and what dpbench reads.
        """
        if value != expected:
            raise ConfigError(
                f"--backbone {self.name}: its configuration has {setting} = {value!r}, dpbench reads images with "
                f"{expected!r} only; give other weights"
            )

    @property
    def device(self) -> torch.device:
        """Return where the embeddings live."""
        return self.decoder.embed_tokens.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Return the weights' floating-point type."""
        return self.decoder.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @abstractmethod
    def grid(self, image: Image) -> tuple[int, int]:
        """Return how many rows and columns of visual tokens the tower makes of an image (AnyRes: of its base view)."""

    def check_image(self, image: Image) -> None:
        """Refuse an image by its size alone, before anything is allocated for it.

        Raises:
            ImageError: it is too large, or has a shape that the processor cannot read or would enlarge beyond bounds.
        """
        if reason := explain_too_large(image.size, self.enlarged_size(image)):
            raise ImageError(reason)

    def enlarged_size(self, image: Image) -> tuple[int, int]:
        """Return the width and height of the largest picture that preprocessing makes of an image on the way."""
        return image.size

    @abstractmethod
    def preprocess(self, images: Sequence[Image], grids: Sequence[tuple[int, int]] | None = None) -> list[Pixels]:
        """Make images ready for the tower: CPU work without weights, in any thread.

        Args:
            images: at least one.
            grids: rows and columns of visual tokens per image, to make fewer tokens than `grid` returns; then
                AnyRes is off and an image is its base view alone.

        Raises:
            ImageError: as `check_image`.
        """

    def prompt(self, images: Sequence[Image], text: str, grids: Sequence[tuple[int, int]] | None = None) -> Prompt:
        """Preprocess images and tokenise the conversation about them, as the processor does both at once.

        Args:
            images: in the order of the conversation.
            text: what is asked.
            grids: as `preprocess` takes them.
        """
        pixels = self.preprocess(images, grids) if images else []
        prompt = self.tokenize([image.rows for image in pixels], [image.size for image in pixels], text)
        return replace(prompt, pixels=tuple(pixels))

    def tokenize(self, rows: Sequence[int], sizes: Sequence[tuple[int, ...]], text: str) -> Prompt:
        """Tokenise a conversation about images that are preprocessed already; its pixels are left out.

        Args:
            rows: `Pixels.rows` of each image.
            sizes: `Pixels.size` of each image.
            text: what is asked.
        """
        ids = self.conversation.prompt(lambda asked: self.chat(len(rows), asked), text)
        repeats = torch.ones_like(ids).masked_scatter(ids == self.image_id, torch.tensor(rows, dtype=torch.int64))
        ids = ids.repeat_interleave(repeats)
        return Prompt(ids, find_spans(ids, self.image_id, rows), (), text, self.positions(ids, sizes))

    def positions(self, ids_L: Tensor, sizes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """Return a prompt's position ids, (P, L), where they are not 0..L-1."""
        return None

    @abstractmethod
    def encode(self, pixels: Sequence[Pixels], needs: frozenset[str] = frozenset()) -> list[Features]:
        """Run tower and projector over I images at once."""

    def bound_pixels(self, least: int | None, most: int | None) -> None:
        """Set how few and how many pixels an image is resized to, where the tower takes any size.

        Raises:
            UnsupportedError: the tower has a size of its own.
        """
        if least is not None or most is not None:
            raise UnsupportedError(f"{self.name} reads images at a fixed size; remove the pixel bounds")

    def set_image_aspect(self, aspect: str) -> None:
        """Set how an image that is not square becomes square: "pad" or "crop".

        Raises:
            UnsupportedError: the tower takes images of any shape.
        """
        raise UnsupportedError(f"{self.name} reads images of any shape; remove the image aspect")

    def set_grids(self, whose: str) -> None:
        """Set who decides between AnyRes grids that fit an image equally well: "transformers" or "llava".

        Raises:
            UnsupportedError: the backbone has no AnyRes grids.
        """
        raise UnsupportedError(f"{self.name} has one view and no tiles; remove the grids")

    @abstractmethod
    def project(self, hidden_KC: Tensor) -> Tensor:
        """Project rows from tower space, (K, D)."""

    def chat(self, num_images: int, text: str) -> str:
        """Return the conversation, images first: by the processor's chat template, or with the system sentence."""
        if self.system:
            images = "<image>\n" * num_images
            return f"{self.system} USER: {images}{text} ASSISTANT:"
        content = [{"type": "image"} for _ in range(num_images)] + [{"type": "text", "text": text}]
        template = self.processor.apply_chat_template
        return template([{"role": "user", "content": content}], add_generation_prompt=True)  # type: ignore[no-any-return]

    def position_ids(self, positions_PBL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return position ids in the form the model's forward takes, (B, L) by default."""
        return positions_PBL[0]

    def embed(self, ids_L: Tensor) -> Tensor:
        """Embed text ids, (L, D)."""
        return self.decoder.embed_tokens(ids_L.to(self.device))  # type: ignore[no-any-return]

    @torch.no_grad()
    def logits(
        self, embeds_BLD: Tensor, mask_BL: Tensor | None, positions_PBL: Tensor, *, last: bool = False
    ) -> Tensor:
        """Run one cached prefill and return the logits of every position, (B, L, vocabulary), or of the last only.

        Without padding the mask is None: to look into one made of ones, transformers would wait for the device.
        """
        return self.forward(embeds_BLD, mask_BL, positions_PBL, last=last).logits  # type: ignore[no-any-return]

    @torch.no_grad()
    def forward(self, embeds_BLD: Tensor, mask_BL: Tensor | None, positions_PBL: Tensor, *, last: bool = False) -> Any:
        """Run one cached prefill, as `logits`, and return transformers' output with its cache."""
        return self.model(
            inputs_embeds=embeds_BLD,
            attention_mask=mask_BL,
            position_ids=self.position_ids(positions_PBL, mask_BL),
            use_cache=True,
            logits_to_keep=int(last),
        )

    @torch.no_grad()
    def generate(
        self,
        embeds_BLD: Tensor,
        mask_BL: Tensor,
        positions_PBL: Tensor,
        *,
        max_new_tokens: int,
        use_cache: bool = True,
        **settings: Any,
    ) -> list[str | None]:
        """Decode greedily and return the answers, stripped; None where logits were NaN or infinite.

        Further settings go to transformers' `generate`.
        """
        watch = FiniteLogits()
        ids = self.model.generate(
            inputs_embeds=embeds_BLD,
            attention_mask=mask_BL,
            position_ids=self.position_ids(positions_PBL, mask_BL),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=use_cache,
            logits_processor=LogitsProcessorList([watch]),
            **settings,
        )
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [
            text.strip() if is_finite else None for text, is_finite in zip(texts, watch.rows(len(texts)), strict=True)
        ]
