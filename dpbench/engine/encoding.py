"""From requests to prompts with encoded images: an image is decoded, processed and encoded once for all its cells.

While one batch is answered, other threads decode and preprocess the images of the next: Pillow and torch release
the GIL meanwhile, so that the GPU does not wait for preprocessing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dpbench.backbones.base import Backbone, Features, Pixels, Prompt
from dpbench.backbones.finite import are_finite, explain_not_finite
from dpbench.engine import context, decision
from dpbench.engine.feature_cache import EncodedImage, FeatureCache, Key, compact
from dpbench.errors import explain
from dpbench.machine.device import use_one_thread
from dpbench.machine.out_of_memory import BatchLimiter
from dpbench.method import Method
from dpbench.tasks.data.image_file import UNREADABLE

if TYPE_CHECKING:
    from PIL.Image import Image

    from dpbench.tasks.lmms_eval_adapter import BuiltTask, Request

_Placeholders = tuple[int, tuple[int, ...]]
"""`Pixels.rows` and `Pixels.size` of an image at its own size."""
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
        too_long: the reason is that it does not fit into the model's context unpruned, so that no method is asked it.
    """

    request: Request
    image_group: str
    prompt: Prompt | None
    features: tuple[Features, ...] = ()
    cache_hits: int = 0
    encoded: int = 0
    failure: str | None = None
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class _KeyedRequest:
    """A request and what its images are kept under, or why it is not asked."""

    request: Request
    keys: tuple[Key, ...]
    failure: str | None = None
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch before its images are encoded.

    Attributes:
        images: by sample, decoded, or the reason why they cannot be decoded.
        pixels: preprocessed, or in preparation, ahead of their turn.
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
        num_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(THREADS, initializer=use_one_thread, initargs=(num_threads,))
        self._batch, self._next = _Batch(), _Batch()
        self._grids: dict[str, tuple[int, int]] = {}
        self._placeholders: dict[str, _Placeholders] = {}

    def start_batch(self, requests: Iterable[Request], following: Iterable[Request]) -> None:
        """Move on to the next batch, and start to decode and preprocess the images of the one after it.

        Args:
            requests: of this batch, by methods that read images at their own size.
            following: the same of the next batch.
        """
        self._prepare(requests)
        wait(self._next.pixels.values())
        self._batch, self._next = self._next, _Batch()
        self._prepare(following)

    def close(self) -> None:
        """Start no further image, and do not wait for those in preparation."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, requests: Iterable[Request]) -> None:
        """Start to decode and preprocess for the next batch what neither the cache nor this batch has.

        Samples of several images wait for their turn, as their images can only be decoded together.
        """
        batch = self._next
        for request in requests:
            key = self.built.image_group(request), None
            if len(self.built.image_hashes(request)) == 1 and self.cache.get(key) is None and key not in batch.pixels:
                started = self._batch.pixels.get(key)
                batch.pixels[key] = started or self._pool.submit(self._preprocess, batch, request, 0, None)

    def samples(self, requests: Sequence[Request], method: Method, rule: decision.Rule) -> list[Sample]:
        """Return prompts with encoded images, at the size the method wants.

        Args:
            requests: of the current batch.
            method: may have images made smaller.
            rule: the budget it does so for.
        """
        keyed = [self._find_keys(request, method, rule) for request in requests]
        images: dict[Key, EncodedImage | str] = {}
        missing: dict[Key, tuple[Request, int]] = {}
        for request in keyed:
            for number, key in enumerate(request.keys):
                cached = self.cache.get(key)
                if cached is not None:
                    images[key] = cached
                else:
                    missing.setdefault(key, (request.request, number))
        images |= self._encode(missing)
        return [self._build_sample(request, images, missing) for request in keyed]

    def _find_keys(self, request: Request, method: Method, rule: decision.Rule) -> _KeyedRequest:
        """Return what a request's images are kept under, unless the request does not fit into the model's context."""
        if request.failure:
            return _KeyedRequest(request, (), request.failure)
        placeholders = self._count_placeholders(request)
        if isinstance(placeholders, str):
            return _KeyedRequest(request, (), placeholders)
        try:
            prompt = self._tokenize(request, placeholders)
        except Exception as error:  # whatever is odd about a sample fails it alone
            return _KeyedRequest(request, (), explain(error))
        if overflow := context.explain_overflow(self.backbone, prompt, request.max_new_tokens):
            return _KeyedRequest(request, (), overflow, too_long=True)
        hashes = self.built.image_hashes(request)
        if not decision.has_resize(method):
            return _KeyedRequest(request, tuple((image_hash, None) for image_hash in hashes))
        if failure := self._find_grids(request):
            return _KeyedRequest(request, (), failure)
        return _KeyedRequest(request, tuple((h, decision.target_grid(method, self._grids[h], rule)) for h in hashes))

    def _count_placeholders(self, request: Request) -> list[_Placeholders] | str:
        """Return how many placeholders each image has at its own size, or why an image cannot be read.

        Costs nothing where every image has the same number; else images are preprocessed, but not encoded.
        """
        hashes = self.built.image_hashes(request)
        if self.backbone.num_visual is not None:
            return [(self.backbone.num_visual, ())] * len(hashes)
        for number, image_hash in enumerate(hashes):
            if image_hash not in self._placeholders:
                key = image_hash, None
                image = self.cache.get(key) or self._pixels(key, request, number)
                if isinstance(image, str):
                    return image
                self._placeholders[image_hash] = image.rows, image.size
        return [self._placeholders[image_hash] for image_hash in hashes]

    def _find_grids(self, request: Request) -> str | None:
        """Find the grid of visual tokens of each image at its own size; return why an image cannot be read, or None."""
        hashes = self.built.image_hashes(request)
        if all(image_hash in self._grids for image_hash in hashes):
            return None
        images = self._open(self._batch, request)
        if isinstance(images, str):
            return images
        try:
            grids = [self.backbone.grid(image) for image in images]
        except Exception as error:
            return explain(error)
        self._grids |= dict(zip(hashes, grids, strict=True))
        return None

    def _open(self, batch: _Batch, request: Request) -> list[Image] | str:
        """Decode a sample's images, once per batch, or return the reason why they cannot be decoded."""
        if request.doc_id not in batch.images:
            try:
                batch.images[request.doc_id] = self.built.images(request)
            except UNREADABLE as error:
                batch.images[request.doc_id] = f"{NO_IMAGE}: {error}"
            except Exception as error:  # a row without an image, or without its entry in a table of images
                batch.images[request.doc_id] = f"{NO_IMAGE}: {explain(error)}"
        return batch.images[request.doc_id]

    def _preprocess(self, batch: _Batch, request: Request, number: int, grid: tuple[int, int] | None) -> Pixels | str:
        """Decode and preprocess one of a sample's images, or return the reason why that fails."""
        images = self._open(batch, request)
        if isinstance(images, str):
            return images
        try:
            (pixels,) = self.backbone.preprocess([images[number]], None if grid is None else [grid])
        except Exception as error:  # whatever is odd about an image fails its samples alone
            return explain(error)
        return pixels

    def _pixels(self, key: Key, request: Request, number: int) -> Pixels | str:
        """Return one of a sample's images preprocessed, once per batch, or the reason why that fails."""
        if key not in self._batch.pixels:
            done: Future[Pixels | str] = Future()
            done.set_result(self._preprocess(self._batch, request, number, key[1]))
            self._batch.pixels[key] = done
        return self._batch.pixels[key].result()

    def _encode(self, missing: Mapping[Key, tuple[Request, int]]) -> dict[Key, EncodedImage | str]:
        """Decode, process and encode images that are not in the cache, and put them there."""
        images: dict[Key, EncodedImage | str] = {}
        ready: dict[Key, Pixels] = {}
        for key, (request, number) in missing.items():
            pixels = self._pixels(key, request, number)
            if isinstance(pixels, str):
                images[key] = pixels
            else:
                ready[key] = pixels
        encoded = self.limiter.map(list(ready.values()), self._encode_together, lambda reason, _: reason)
        for (key, pixels), features in zip(ready.items(), encoded, strict=True):
            if isinstance(features, Features):
                images[key] = EncodedImage(compact(features), pixels.rows, pixels.size)
            else:
                images[key] = features
        for key, image in images.items():
            if isinstance(image, EncodedImage):
                self.cache.put(key, image)
            if self.cache.get(key) is not None:
                self._batch.pixels.pop(key, None)  # other pixels may be needed again: their features are not cached
        return images

    def _encode_together(self, part: Sequence[Pixels]) -> list[Features | str]:
        """Encode images, or say why a method could not choose between the tokens of one."""
        features = self.backbone.encode(part, self.needs)
        reason = explain_not_finite("the visual tokens are", self.backbone.dtype)
        return [each if is_finite else reason for each, is_finite in zip(features, are_finite(features), strict=True)]

    def _build_sample(
        self, keyed: _KeyedRequest, images: Mapping[Key, EncodedImage | str], missing: Mapping[Key, tuple[Request, int]]
    ) -> Sample:
        group = self.built.image_group(keyed.request)
        results = [images[key] for key in keyed.keys]
        failure = keyed.failure or next((result for result in results if isinstance(result, str)), None)
        if failure is not None:
            return Sample(keyed.request, group, None, failure=failure, too_long=keyed.too_long)
        own = [result for result in results if isinstance(result, EncodedImage)]
        num_encoded = sum(missing.get(key) == (keyed.request, number) for number, key in enumerate(keyed.keys))
        self.cache.counts["hits"] += len(own) - num_encoded
        self.cache.counts["encoded"] += num_encoded
        prompt = self._tokenize(keyed.request, [(image.rows, image.size) for image in own])
        return Sample(
            keyed.request, group, prompt, tuple(image.features for image in own), len(own) - num_encoded, num_encoded
        )

    def _tokenize(self, request: Request, placeholders: Sequence[_Placeholders]) -> Prompt:
        """Tokenise a request, once per batch and size of its images."""
        rows, sizes = [rows for rows, _ in placeholders], [size for _, size in placeholders]
        key = request.doc_id, tuple(rows)
        if key not in self._batch.prompts:
            self._batch.prompts[key] = self.backbone.tokenize(rows, sizes, request.text)
        return self._batch.prompts[key]
