"""Draw the README's picture: one toy scene and what four methods keep of its 144 visual tokens."""

from pathlib import Path

import numpy as np
from PIL import Image

from dpbench import backbones, reducing, registry
from dpbench.backbones.base import Backbone
from dpbench.toy.scenes import draw, is_held_out, random_scene

KEEP, SCALE, GAP = 16, 3, 12
METHODS = ("none", "random", "cls-attention", "holov", "diffprune")


def main() -> None:
    """Write kept_tokens.png beside this file: a row per scene, a column per method, dropped patches darkened."""
    backbone, rng = backbones.load("toy-llava"), np.random.default_rng(11)
    scenes = [scene for scene in (random_scene(rng) for _ in range(60)) if is_held_out(scene) and len(scene) > 1][:2]
    rows = [np.concatenate([column(backbone, image, name) for name in METHODS], axis=1) for image in draw(scenes, rng)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * SCALE, sheet.height * SCALE), Image.Resampling.NEAREST).save(
        Path(__file__).with_name("kept_tokens.png")
    )


def column(backbone: Backbone, image: np.ndarray, name: str) -> np.ndarray:
    """Return one scene with what a method drops darkened, framed in white."""
    method = registry.load(name).bind(backbone)
    (features,) = backbone.encode(backbone.prompt([Image.fromarray(image)], "").pixels, method.needs(backbone.provides))
    visual = reducing.visual_tokens(features, "", reducing.image_generator(0, "picture", 0))
    kept = reducing.reduce_image(method, visual, reducing.Rule(keep=KEEP), num_read=len(visual)).indices_K.numpy()
    shown = np.isin(np.arange(144), kept).reshape(12, 12).repeat(8, 0).repeat(8, 1)
    shade = np.where(shown[..., None], image, image * 0.18).astype(np.uint8)
    return np.pad(shade, ((GAP // 2, GAP // 2), (GAP // 2, GAP // 2), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
