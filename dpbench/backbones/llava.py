"""LLaVA-1.5 and every model of its form, `toy-llava` among them: CLIP tower, MLP projector, Llama decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils.logging import disable_progress_bar

from dpbench.backbones.base import Backbone, Features, Prompt


class Llava(Backbone):
    """A `LlavaForConditionalGeneration` with its processor."""

    num_visual: int
    provides = frozenset({"cls_attention", "cls_hidden_VC", "keys_Nd"})

    def __init__(self, name: str, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.core = model.model
        self.decoder: nn.Module = self.core.language_model
        self.num_layers = model.config.text_config.num_hidden_layers
        vision = model.config.vision_config
        self.tower_heads: int = vision.num_attention_heads
        self.side = vision.image_size // vision.patch_size
        self.num_visual = self.side**2
        self.select_layer = vision.num_hidden_layers + model.config.vision_feature_layer
        self.image_id = model.config.image_token_id

    def prompt(self, images: Sequence[Image], text: str) -> Prompt:
        """Preprocess images and tokenise "USER: <image>... text ASSISTANT:" by the processor's chat template."""
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
        chat = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(images=list(images) or None, text=chat, return_tensors="pt")
        ids = inputs["input_ids"][0]
        return Prompt(ids, ids == self.image_id, tuple(inputs.get("pixel_values", ())), text)

    @torch.no_grad()
    def encode(self, pixels: Sequence[Tensor], needs: frozenset[str] = frozenset()) -> list[Features]:
        """Run tower and projector over I images at once; the tower's attention stays SDPA."""
        batch = torch.stack(list(pixels)).to(self.device, self.dtype)
        with self._watched_tower(needs) as seen:
            hidden = self.core.vision_tower(batch, output_hidden_states=True).hidden_states[self.select_layer + 1]
        embeds = self.core.multi_modal_projector(hidden[:, 1:])
        rows = torch.arange(self.side, device=embeds.device)
        shared = {
            "view_N": torch.zeros(self.num_visual, dtype=torch.int64, device=embeds.device),
            "row_N": rows.repeat_interleave(self.side),
            "col_N": rows.repeat(self.side),
            "read_N": torch.ones(self.num_visual, dtype=torch.bool, device=embeds.device),
        }
        attention = self._cls_rows(seen) if "cls_attention" in needs else None
        keys = self._mean_keys(seen) if "keys_Nd" in needs else None
        return [
            Features(
                embeds_ND=embeds[i],
                hidden_NC=hidden[i, 1:],
                cls_hidden_VC=hidden[i, :1],
                cls_attention={} if attention is None else {self.select_layer: attention[i]},
                keys_Nd=None if keys is None else keys[i],
                **shared,
            )
            for i in range(len(batch))
        ]

    @contextmanager
    def _watched_tower(self, needs: frozenset[str]) -> Iterator[dict[str, Tensor]]:
        """Keep the select layer's queries and keys, as its own projections compute them anyway."""
        attention = self.core.vision_tower.encoder.layers[self.select_layer].self_attn
        wanted = {"q": attention.q_proj} if "cls_attention" in needs else {}
        wanted |= {"k": attention.k_proj} if needs & {"cls_attention", "keys_Nd"} else {}
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda _module, _args, output: seen.__setitem__(name, output.detach())

        handles = [module.register_forward_hook(keep(name)) for name, module in wanted.items()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _heads(self, projected: Tensor) -> Tensor:
        """Split (I, 1+N, C) into (I, H, 1+N, d)."""
        images, length, width = projected.shape
        return projected.view(images, length, self.tower_heads, width // self.tower_heads).transpose(1, 2)

    def _cls_rows(self, seen: dict[str, Tensor]) -> Tensor:
        """Return the CLS query's softmax over all keys, CLS column dropped, (I, H, N) float32."""
        queries, keys = self._heads(seen["q"])[:, :, :1].float(), self._heads(seen["k"]).float()
        scores = queries @ keys.transpose(-1, -2) / float(keys.shape[-1] ** 0.5)
        return scores.softmax(-1)[:, :, 0, 1:]

    def _mean_keys(self, seen: dict[str, Tensor]) -> Tensor:
        """Return the head-mean keys of the patches, (I, N, d)."""
        return self._heads(seen["k"]).mean(1)[:, 1:]

    @torch.no_grad()
    def project(self, hidden_KC: Tensor) -> Tensor:
        """Project rows from tower space, (K, D)."""
        return self.core.multi_modal_projector(hidden_KC)  # type: ignore[no-any-return]

    @torch.no_grad()
    def embed(self, ids_L: Tensor) -> Tensor:
        """Embed text ids, (L, D)."""
        return self.model.get_input_embeddings()(ids_L.to(self.device))  # type: ignore[no-any-return,operator]

    @torch.no_grad()
    def logits(self, embeds_BLD: Tensor, mask_BL: Tensor, positions_BL: Tensor, *, last: bool = False) -> Tensor:
        """Run one cached prefill and return the logits of every position, (B, L, vocabulary), or of the last only."""
        output = self.model(
            inputs_embeds=embeds_BLD,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            use_cache=True,
            logits_to_keep=int(last),
        )
        return output.logits  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self, embeds_BLD: Tensor, mask_BL: Tensor, positions_BL: Tensor, *, max_new_tokens: int, use_cache: bool = True
    ) -> list[str]:
        """Decode greedily and return the answers, stripped."""
        ids = self.model.generate(  # type: ignore[operator]
            inputs_embeds=embeds_BLD,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


def load(name: str, folder: Path, *, device: str, dtype: str, attention: str) -> Llava:
    """Load model and processor from a folder in `save_pretrained`'s form."""
    disable_progress_bar()
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention, local_files_only=True
    )
    return Llava(name, model.to(device), LlavaProcessor.from_pretrained(folder, local_files_only=True))
