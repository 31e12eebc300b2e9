"""The loss that training differentiates: transformers' own, on every family, with a gradient in the embeddings."""

import numpy as np
import pytest
import torch
from PIL import Image

from dpbench.backbones import miniatures as tinies

CAPTIONS = ("a red circle", "nothing to see at the top left of this image")


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_the_caption_loss_is_transformers_loss_on_the_reply(family: str) -> None:
    model = tinies.backbone(family)
    prompts = [model.prompt([picture(1, (60, 100))], "Describe ."), model.prompt([picture(2, (60, 60))], "And now ?")]
    features = [model.encode(prompt.pixels)[0] for prompt in prompts]
    visual = [each.embeds_ND.detach().requires_grad_() for each in features]
    loss = model.caption_loss(prompts, features, visual, CAPTIONS)
    total, count = 0.0, 0
    for prompt, caption in zip(prompts, CAPTIONS, strict=True):
        reply = model.processor.tokenizer(f" {caption}", add_special_tokens=False)["input_ids"]
        reply = torch.tensor([*reply, model.processor.tokenizer.eos_token_id])
        ids = torch.cat([prompt.ids_L, reply])[None]
        given = {"pixel_values": torch.cat([each.values for each in prompt.pixels]).double()}
        if family == "llava":
            given = {"pixel_values": prompt.pixels[0].values[None].double()}
        if family == "llava_next":
            given = {
                "pixel_values": prompt.pixels[0].values[None].double(),
                "image_sizes": torch.tensor([prompt.pixels[0].size]),
            }
        if family == "qwen2_5_vl":
            given |= {"image_grid_thw": torch.tensor([prompt.pixels[0].size])}
            given |= {"mm_token_type_ids": (ids == model.image_id).int()}
        with torch.no_grad():
            logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **given).logits
        wanted = torch.nn.functional.cross_entropy(logits[0, -len(reply) - 1 : -1].float(), reply, reduction="sum")
        total, count = total + float(wanted), count + len(reply)
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-5)
    loss.backward()
    for each, feature in zip(visual, features, strict=True):
        assert each.grad is not None
        reached = each.grad.abs().sum(-1) > 0
        assert torch.equal(reached, feature.read_N)
