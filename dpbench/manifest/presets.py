"""Named protocols: lmms-eval's, that of LLaVA's own code, and those of the paper's tables. No torch.

A field that a manifest leaves out follows its preset, and where the preset says nothing, the backbone's family. A cell
holds the values and not the preset's name: two ways to say the same protocol are the same cell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from dpbench.backbones import Family
from dpbench.errors import ConfigError

Preset = Literal["lmms-eval", "llava", "published"]

_LMMS_EVAL: Mapping[str, Any] = {
    "wording": "lmms-eval",
    "reading": "first-word",
    "grids": "transformers",
    "dtype": "float32",
}
_LLAVA: Mapping[str, Any] = {**_LMMS_EVAL, "wording": "llava", "reading": "llava", "grids": "llava"}
_PUBLISHED: Mapping[int, Mapping[str, Any]] = {
    1: {**_LLAVA, "dtype": "float16"},
    2: {**_LLAVA, "dtype": "float16"},
    # The paper states neither prompt nor pixels of its Qwen2.5-VL; bfloat16 is the type of the published weights.
    3: {**_LMMS_EVAL, "dtype": "bfloat16"},
}
"""By the paper's table. Where the values come from: `manifests/paper/`."""


SHOWN = (
    "dtype", "prompt", "ocr", "wording", "reading", "image_aspect", "grids", "min_pixels", "max_pixels", "limit"
)  # fmt: skip
"""Fields of a protocol that say what was measured, in the order in which they are printed."""


def describe(values: Mapping[str, Any], *, without: Collection[str] = ()) -> str:
    """Return a resolved protocol in words: each field that applies and its value.

    Args:
        values: by field, of a cell or of `Protocol.model_dump`.
        without: fields to leave out.
    """
    shown = {name: values[name] for name in SHOWN if name not in without and values.get(name) is not None}
    return ", ".join(
        f"{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in shown.items()
    )


def preset_values(preset: Preset, family: Family, backbone: str) -> dict[str, Any]:
    """Return every field that a preset and a backbone's family decide, by its name in `Protocol`.

    Raises:
        ConfigError: no table of the paper measures this backbone.
    """
    least, most = family.pixels or (None, None)
    by_family = {
        "prompt": family.prompt,
        "ocr": family.ocr,
        "image_aspect": family.image_aspect,
        "min_pixels": least,
        "max_pixels": most,
    }
    values = {**_by_name(preset, family, backbone), **by_family}
    return values if family.tiles else {**values, "grids": None}


def _by_name(preset: Preset, family: Family, backbone: str) -> Mapping[str, Any]:
    if preset == "lmms-eval":
        return _LMMS_EVAL
    if preset == "llava":
        return _LLAVA
    if family.paper_table is None:
        raise ConfigError(
            f"protocol.preset: no table of the paper measures {backbone}, so it has no published protocol; "
            "give lmms-eval or llava"
        )
    return _PUBLISHED[family.paper_table]
