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
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from dpbench.backbones.finite_logits import FiniteLogits
from dpbench.errors import ConfigError, ImageError, UnsupportedError
from dpbench.machine.image_memory import explain_too_large
from dpbench.method import ImageTokens

_STAND_IN = "\ue000"
"""A private-use character in place of a question that contains a special token."""


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


@dataclass(frozen=True, slots=True)
class Captioned:
    """One prompt with its image and a caption behind it: the input of `caption_losses`.

    Attributes:
        embeds_LD: prompt and caption.
        positions_PL: int64 position ids.
        reply: int64 ids of the caption and the end token, the last of the L positions.
    """

    embeds_LD: Tensor
    positions_PL: Tensor
    reply: Tensor


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
        token = self.processor.tokenizer.convert_ids_to_tokens(self.image_id)
        if token is None or self.chat(1, "").count(token) != 1:
            raise ConfigError(
                f"--backbone {self.name}: its configuration marks images with the token {self.image_id}, which its "
                f"tokenizer calls {token!r} and its conversation does not contain once; give the tokenizer that "
                "belongs to the weights"
            )

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
        ids = self._tokenize_conversation(len(rows), text)
        repeats = torch.ones_like(ids).masked_scatter(ids == self.image_id, torch.tensor(rows, dtype=torch.int64))
        ids = ids.repeat_interleave(repeats)
        return Prompt(ids, find_spans(ids, self.image_id, rows), (), text, self.positions(ids, sizes))

    def _tokenize_conversation(self, num_images: int, text: str) -> Tensor:
        """Return the ids of a conversation with one placeholder an image, int64 (L,).

        The pieces around the placeholders are tokenised apart, as in LLaVA's code. Given the whole, a SentencePiece
        tokenizer with `legacy: false` in its file loses the space that begins the text behind an image.
        """
        tokenizer = self.processor.tokenizer
        placeholder = tokenizer.convert_ids_to_tokens(self.image_id)
        is_plain = not any(word in text for word in tokenizer.get_added_vocab())
        # A question may name a special token, such as "<image>"; where it is put in later, it is found to be text.
        conversation = self.chat(num_images, text if is_plain else _STAND_IN)
        first, *others = conversation.split(placeholder)
        ids = self._piece_ids(first, text, add_special_tokens=True)
        for piece in others:
            ids += [self.image_id, *self._piece_ids(piece, text, add_special_tokens=False)]
        return torch.tensor(ids, dtype=torch.int64)

    def _piece_ids(self, piece: str, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a piece; the text that stands for the stand-in has no special tokens, whatever it says."""
        tokenizer = self.processor.tokenizer
        if _STAND_IN not in piece:
            return list(tokenizer(piece, add_special_tokens=add_special_tokens)["input_ids"]) if piece else []
        before, after = piece.split(_STAND_IN)
        if not any(word in before + after for word in tokenizer.get_added_vocab()):
            before, text, after = "", before + text + after, ""
        ids = tokenizer(before, add_special_tokens=add_special_tokens)["input_ids"]
        ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids, *tokenizer(after, add_special_tokens=False)["input_ids"]]

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

    def caption_losses(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Features],
        visual: Sequence[Tensor],
        captions: Sequence[str],
        kept: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the cross-entropy of every caption token, (T,), differentiable in the visual embeddings.

        Args:
            prompts: B prompts of one image each.
            features: B images, for where each token goes.
            visual: per image (N, D), in tower order, in place of `Features.embeds_ND`.
            captions: the B replies.
            kept: per image the int64 indices, on the CPU, of the tokens that stay, at their original positions and
                without newlines; by default all stay.
        """
        stays = kept if kept is not None else [None] * len(prompts)
        rows = [self._captioned(*image) for image in zip(prompts, features, visual, captions, stays, strict=True)]
        sizes = torch.tensor([len(row.embeds_LD) for row in rows])
        embeds = nn.utils.rnn.pad_sequence([row.embeds_LD for row in rows], batch_first=True)
        positions = nn.utils.rnn.pad_sequence([row.positions_PL.T for row in rows], batch_first=True).permute(2, 0, 1)
        mask = (torch.arange(embeds.shape[1]) < sizes[:, None]).long()
        mask, positions = mask.to(self.device), positions.to(self.device)
        hidden = self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=self.position_ids(positions, mask),
            use_cache=False,
        ).last_hidden_state
        wanted = torch.cat(
            [hidden[i, len(r.embeds_LD) - len(r.reply) - 1 :][: len(r.reply)] for i, r in enumerate(rows)]
        )
        labels = torch.cat([row.reply for row in rows]).to(self.device)
        scores = self.model.lm_head(wanted)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return nn.functional.cross_entropy(scores, labels, reduction="none")

    def _captioned(
        self, prompt: Prompt, features: Features, visual_ND: Tensor, caption: str, kept: Tensor | None
    ) -> Captioned:
        """Put an image's embeddings, or those kept of them, into its prompt and the caption behind it."""
        reply = self._reply(caption)
        (start, stop), slots = prompt.spans[0], features.slot_N
        text = self.embed(torch.cat([prompt.ids_L, reply]))
        read = (slots >= 0).nonzero()[:, 0] if kept is None else kept[slots[kept] >= 0]
        read = read[slots[read].argsort()]
        rows, places = visual_ND.to(text.dtype)[read.to(text.device)], slots[read]
        if kept is None and features.newline_D is not None:
            newlines = features.newline_D.to(text.dtype).expand(stop - start, -1)
            rows, places = newlines.index_copy(0, places.to(text.device), rows), torch.arange(stop - start)
        positions = prompt.positions_PL if prompt.positions_PL is not None else torch.arange(len(prompt.ids_L))[None]
        later = positions[:, -1:] + torch.arange(1, len(reply) + 1)
        positions = torch.cat([positions[:, :start], positions[:, start + places], positions[:, stop:], later], 1)
        return Captioned(torch.cat([text[:start], rows, text[stop:]]), positions, reply)

    def _reply(self, caption: str) -> Tensor:
        """Return the ids of a caption as an answer, with the end token."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(f" {caption}", add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return torch.cat([ids, torch.tensor([tokenizer.eos_token_id])])


def crop_centre_square(image: Image) -> Image:
    """Return the middle of an image, as wide as high."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def pad_to_square(image: Image, mean: Sequence[float]) -> Image:
    """Return an image in the middle of a square of the mean colour, whose side is the image's longer one.

    Args:
        image: RGB.
        mean: the processor's `image_mean`, 0-1 per channel; LLaVA rounds the colour down.
    """
    side = max(image.size)
    square = new_image("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def find_spans(ids_L: Tensor, image_id: int, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return where each image's placeholders begin and end; adjacent images are told apart by size.

    Raises:
        ValueError: the placeholders are not those of images of these sizes.
    """
    at = (ids_L == image_id).nonzero()[:, 0].tolist()
    if len(at) != sum(sizes):
        raise ValueError(f"{len(at)} placeholders in the prompt, {sum(sizes)} rows of images")
    spans, used = [], 0
    for size in sizes:
        spans.append((at[used], at[used] + size))
        used += size
    return tuple(spans)
