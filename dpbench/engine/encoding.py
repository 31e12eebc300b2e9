"""From requests to prompts with encoded images: an image is decoded, processed and encoded once for all its cells.

While one batch is answered, other threads decode and preprocess the images of the next: Pillow and torch do so outside
the interpreter's lock, and an accelerator does not wait for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from PIL.Image import DecompressionBombError

from dpbench.backbones.base import Backbone, Features, Pixels, Prompt
from dpbench.engine import decision
from dpbench.engine.feature_cache import EncodedImage, FeatureCache, Key, compact
from dpbench.errors import ImageError
from dpbench.machine.device import use_one_thread
from dpbench.machine.out_of_memory import OUT_OF_MEMORY, BatchLimiter
from dpbench.method import Method

if TYPE_CHECKING:
    from PIL.Image import Image

    from dpbench.tasks.lmms_eval_adapter import BuiltTask, Request

NO_IMAGE = "image could not be decoded"
THREADS = min(4, os.cpu_count() or 1)
"""Images decoded and preprocessed at once, each by one thread."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request with its images encoded.

    Attributes:
        request: what is asked.
        image_group: what requests about the same images share.
        prompt: as the LLM would read it unpruned; None where it failed.
        features: one entry per image.
        cache_hits: how many of its images were encoded before.
        encoded: how many of its images were encoded for it.
        failure: why it has no prompt.
    """

    request: Request
    image_group: str
    prompt: Prompt | None
    features: tuple[Features, ...] = ()
    cache_hits: int = 0
    encoded: int = 0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class _KeyedRequest:
    """A request and what its images are kept under, or why they cannot be read."""

    request: Request
    keys: tuple[Key, ...]
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is known of a batch before its images are encoded.

    Attributes:
        images: by sample, decoded, or why they cannot be.
        pixels: what is, or is being, preprocessed ahead of its turn.
        prompts: by sample and rows of its images.
    """

    images: dict[int, list[Image] | str] = field(default_factory=dict)
    pixels: dict[Key, Future[Pixels | str]] = field(default_factory=dict)
    prompts: dict[tuple[int, tuple[int, ...]], Prompt] = field(default_factory=dict)


class Encoder:
    """Encodes the images of one task's requests, batch by batch.

    Args:
        backbone: preprocesses, tokenises and encodes.
        built: decodes a request's images and hashes their files.
        cache: shared by all tasks of a run.
        needs: which optional signals the run's methods read.
    """

    def __init__(self, backbone: Backbone, built: BuiltTask, cache: FeatureCache, needs: frozenset[str]) -> None:
        self.backbone, self.built, self.cache, self.needs = backbone, built, cache, needs
        self.limiter = BatchLimiter(cache.clear)
        whole = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(THREADS, initializer=use_one_thread, initargs=(whole,))
        self._batch, self._next = _Batch(), _Batch()
        self._grids: dict[str, tuple[int, int]] = {}

    def start_batch(self, requests: Iterable[Request], following: Iterable[Request]) -> None:
        """Forget the batch before, and begin to decode and preprocess the images of the one that follows.

        Args:
            requests: of this batch, by methods that read images at their own size.
            following: the same of the next batch.
        """
        self._begin(requests)
        wait(self._next.pixels.values())
        self._batch, self._next = self._next, _Batch()
        self._begin(following)

    def close(self) -> None:
        """Begin with no further image; those that are being decoded are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, requests: Iterable[Request]) -> None:
        """Decode and preprocess for the next batch what the cache does not hold and this batch has not begun with.

        Samples of several images are left for their turn: to decode one of them is to decode all.
        """
        batch = self._next
        for request in requests:
            key = self.built.image_group(request), None
            if len(self.built.image_hashes(request)) == 1 and self.cache.get(key) is None and key not in batch.pixels:
                begun = self._batch.pixels.get(key)
                batch.pixels[key] = begun or self._pool.submit(self._preprocess, batch, request, 0, None)

    def samples(self, requests: Sequence[Request], method: Method, rule: decision.Rule) -> list[Sample]:
        """Return prompts with encoded images, at the size the method wants.

        Args:
            requests: of the current batch.
            method: may have images made smaller.
            rule: the budget it does so for.
        """
        asked = [self._find_keys(request, method, rule) for request in requests]
        seen: dict[Key, EncodedImage | str] = {}
        missing: dict[Key, tuple[Request, int]] = {}
        for each in asked:
            for number, key in enumerate(each.keys):
                held = self.cache.get(key)
                if held is not None:
                    seen[key] = held
                else:
                    missing.setdefault(key, (each.request, number))
        seen |= self._encode(missing)
        return [self._sample(each, seen, missing) for each in asked]

    def _find_keys(self, request: Request, method: Method, rule: decision.Rule) -> _KeyedRequest:
        hashes = self.built.image_hashes(request)
        if not decision.has_resize(method):
            return _KeyedRequest(request, tuple((each, None) for each in hashes))
        if any(each not in self._grids for each in hashes):
            images = self._open(self._batch, request)
            if isinstance(images, str):
                return _KeyedRequest(request, (), images)
            try:
                self._grids |= {each: self.backbone.grid(image) for each, image in zip(hashes, images, strict=True)}
            except ImageError as error:
                return _KeyedRequest(request, (), str(error))
        return _KeyedRequest(request, tuple((h, decision.target_grid(method, self._grids[h], rule)) for h in hashes))

    def _open(self, batch: _Batch, request: Request) -> list[Image] | str:
        """Decode a sample's images, once per batch, or say why they cannot be."""
        if request.doc_id not in batch.images:
            try:
                batch.images[request.doc_id] = self.built.images(request)
            except (OSError, SyntaxError, DecompressionBombError) as error:  # PIL calls a broken PNG a SyntaxError
                batch.images[request.doc_id] = f"{NO_IMAGE}: {error}"
        return batch.images[request.doc_id]

    def _preprocess(self, batch: _Batch, request: Request, number: int, grid: tuple[int, int] | None) -> Pixels | str:
        """Decode and preprocess one of a sample's images, or say why it cannot be."""
        images = self._open(batch, request)
        if isinstance(images, str):
            return images
        try:
            (pixels,) = self.backbone.preprocess([images[number]], None if grid is None else [grid])
        except ImageError as error:
            return str(error)
        return pixels

    def _encode(self, missing: Mapping[Key, tuple[Request, int]]) -> dict[Key, EncodedImage | str]:
        """Decode, process and encode images that are not in the cache, and put them there."""
        seen: dict[Key, EncodedImage | str] = {}
        ready: dict[Key, Pixels] = {}
        for key, (request, number) in missing.items():
            begun = self._batch.pixels.get(key)
            pixels = begun.result() if begun else self._preprocess(self._batch, request, number, key[1])
            if isinstance(pixels, str):
                seen[key] = pixels
            else:
                ready[key] = pixels
        made = self.limiter.map(list(ready.values()), lambda part: self.backbone.encode(part, self.needs))
        for (key, pixels), features in zip(ready.items(), made, strict=True):
            seen[key] = OUT_OF_MEMORY if features is None else EncodedImage(compact(features), pixels.rows, pixels.size)
        for key, each in seen.items():
            if isinstance(each, EncodedImage):
                self.cache.put(key, each)
            if self.cache.get(key) is not None:
                self._batch.pixels.pop(key, None)
        return seen

    def _sample(
        self, asked: _KeyedRequest, seen: Mapping[Key, EncodedImage | str], missing: Mapping[Key, tuple[Request, int]]
    ) -> Sample:
        group = self.built.image_group(asked.request)
        found = [seen[key] for key in asked.keys]
        failure = asked.failure or next((each for each in found if isinstance(each, str)), None)
        if failure is not None:
            return Sample(asked.request, group, None, failure=failure)
        images = [each for each in found if isinstance(each, EncodedImage)]
        encoded = sum(missing.get(key) == (asked.request, number) for number, key in enumerate(asked.keys))
        features, counts = tuple(each.features for each in images), self.cache.counts
        counts["hits"] += len(images) - encoded
        counts["encoded"] += encoded
        prompt = self._prompt(asked.request, images)
        return Sample(asked.request, group, prompt, features, len(images) - encoded, encoded)

    def _prompt(self, request: Request, images: Sequence[EncodedImage]) -> Prompt:
        """Tokenise a request, once per batch and size of its images."""
        key = (request.doc_id, tuple(each.rows for each in images))
        if key not in self._batch.prompts:
            rows, sizes = [each.rows for each in images], [each.size for each in images]
            self._batch.prompts[key] = self.backbone.tokenize(rows, sizes, request.text)
        return self._batch.prompts[key]
