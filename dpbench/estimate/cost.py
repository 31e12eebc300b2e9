"""What a cell's answers cost: FLOPs of an image and of a question, and bytes of a prompt, from shapes.

2 FLOPs per multiply-add, as in `measure.flops_formula`. A method's own arithmetic is not counted: it is small, and its
time is in the rates.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache

from dpbench import registry
from dpbench.errors import DpbenchError
from dpbench.estimate.shapes import Shapes
from dpbench.manifest.cell import Cell
from dpbench.measure import flops_formula
from dpbench.method import Budget, Method

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a number, by type."""
PACKED_BYTES = {"4bit": 0.5, "8bit": 1.0}
"""Of a packed weight."""


@dataclass(frozen=True, slots=True)
class CellCost:
    """FLOPs of one cell's prompts.

    Attributes:
        image: of the decoder over what questions about one image share; 0 if they share nothing.
        question: of the decoder and the LM head over the rest of a prompt.
        resized_image: of tower and projector over an image that the method has resized; None if it resizes none.
    """

    image: int
    question: int
    resized_image: int | None


def image_flops(shapes: Shapes) -> int:
    """Return the FLOPs of tower and projector over one image."""
    return _encode_flops(shapes, shapes.grid_hw)


def _encode_flops(shapes: Shapes, grid_hw: tuple[int, int]) -> int:
    count = shapes.num_views * grid_hw[0] * grid_hw[1]
    tower = flops_formula.tower(shapes.config, grid_hw, shapes.num_views)
    return tower + flops_formula.projector(shapes.config, count)


def cell_cost(shapes: Shapes, cell: Cell) -> CellCost:
    """Return what a cell's prompts cost.

    Raises:
        DpbenchError: the method cannot reach the budget.
    """
    method, count = registry.load(cell.method, cell.params), cell.budget.count(shapes.num_visual)
    budget = Budget(count, cell.budget_kind)
    lengths = visual_lengths(shapes, method, budget)
    whole = flops_formula.decoder(shapes.config, [length + shapes.text_tokens for length in lengths])
    whole += flops_formula.lm_head(shapes.config)
    is_own = len(set(lengths)) > 1 or keeps_own_rows(cell.method)
    shared = 0 if is_own else flops_formula.decoder(shapes.config, lengths)
    return CellCost(shared, whole - shared, _resized(shapes, method, budget))


def visual_lengths(shapes: Shapes, method: Method, budget: Budget) -> list[int]:
    """Return how many visual tokens each decoder layer reads.

    Raises:
        DpbenchError: the method cannot reach the budget.
    """
    cuts = method.cuts(shapes.num_visual, shapes.num_layers, budget)
    if not cuts:
        return [budget.count] * shapes.num_layers
    starts = {cut.layer: cut.keep for cut in cuts}
    lengths, current = [], shapes.num_visual
    for layer in range(shapes.num_layers):
        current = min(current, starts.get(layer, current))
        lengths.append(current)
    return lengths


def _resized(shapes: Shapes, method: Method, budget: Budget) -> int | None:
    if type(method).resize is Method.resize:
        return None
    per_view = Budget(max(1, budget.count // shapes.num_views), budget.kind)
    return _encode_flops(shapes, method.resize(shapes.grid_hw, per_view))


@cache
def keeps_own_rows(name: str) -> bool:
    """Return True if a method may keep other rows for each question about an image: it draws, or reads the question.

    Read from its source: the class, or the whole file where it is the only method there.
    """
    path, point = registry.source_path(name), registry.find(name)
    tree: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    if sum(other.module == point.module for other in registry.methods().values()) > 1:
        tree = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == point.attr)
    return any(isinstance(node, ast.Attribute) and node.attr in ("generator", "question") for node in ast.walk(tree))


def try_cell_cost(shapes: Shapes, cell: Cell) -> CellCost | DpbenchError:
    """Return what a cell's prompts cost, or why its method refuses the budget."""
    try:
        return cell_cost(shapes, cell)
    except DpbenchError as error:
        return error


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device.

    Attributes:
        weights: parameters.
        prompt: KV cache and activations of one unpruned prompt, the longest that the decoder reads.
        batch_size: prompts at once.
        cache: encoded images that are kept, at most.
    """

    weights: int
    prompt: int
    batch_size: int
    cache: int

    @property
    def least(self) -> int:
        """Return what one prompt at a time needs."""
        return self.weights + self.prompt

    @property
    def most(self) -> int:
        """Return what whole batches and a full cache of images need."""
        return self.weights + self.batch_size * self.prompt + self.cache


def prompt_bytes(shapes: Shapes, dtype: str, answer_limit: int) -> int:
    """Return the bytes of one unpruned prompt: its KV cache, and the widest activations of a layer.

    A gated MLP holds three rows of its inner width, the layer around it four of the hidden width, for every position.
    """
    text, positions = shapes.config.text_config, shapes.num_visual + shapes.text_tokens + answer_limit
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv = 2 * shapes.num_layers * text.num_key_value_heads * head
    activations = 3 * text.intermediate_size + 4 * text.hidden_size
    return int(positions * (kv + activations) * BYTES[dtype])


def image_bytes(shapes: Shapes, dtype: str) -> int:
    """Return the bytes of one encoded image: its tokens before and after the projector."""
    width = shapes.config.vision_config.hidden_size + shapes.config.text_config.hidden_size
    return int(shapes.num_visual * width * BYTES[dtype])
