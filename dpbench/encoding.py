"""From requests to prompts with encoded images: an image is decoded, processed and encoded once for all its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL.Image import DecompressionBombError

from dpbench import reducing
from dpbench.backbones.base import Backbone, Features, Pixels, Prompt
from dpbench.errors import ImageError
from dpbench.feature_cache import FeatureCache, Key, Seen, compact
from dpbench.method import Method
from dpbench.room import NO_ROOM, Room

if TYPE_CHECKING:
    from PIL.Image import Image

    from dpbench.lmms import BuiltTask, Request

NO_IMAGE = "image could not be decoded"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request with its images encoded.

    Attributes:
        request: what is asked.
        prompt: as the LLM would read it unpruned; None where it failed.
        features: one entry per image.
        cache_hits: how many of its images were encoded before.
        encoded: how many of its images were encoded for it.
        failure: why it has no prompt.
    """

    request: Request
    prompt: Prompt | None
    features: tuple[Features, ...] = ()
    cache_hits: int = 0
    encoded: int = 0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request and what its images are kept under, or why they cannot be read."""

    request: Request
    keys: tuple[Key, ...]
    failure: str | None = None


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
        self.room = Room(cache.clear)
        self._images: dict[int, list[Image] | str] = {}
        self._prompts: dict[tuple[int, tuple[int, ...]], Prompt] = {}
        self._grids: dict[str, tuple[int, int]] = {}

    def start_batch(self) -> None:
        """Forget the images and prompts of the batch before."""
        self._images.clear()
        self._prompts.clear()

    def samples(self, requests: Sequence[Request], method: Method, rule: reducing.Rule) -> list[Sample]:
        """Return prompts with encoded images, at the size the method wants.

        Args:
            requests: of the current batch.
            method: may have images made smaller.
            rule: the budget it does so for.
        """
        asked = [self._asked(request, method, rule) for request in requests]
        seen: dict[Key, Seen | str] = {}
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

    def _asked(self, request: Request, method: Method, rule: reducing.Rule) -> _Asked:
        hashes = self.built.image_hashes(request)
        if not reducing.resizes(method):
            return _Asked(request, tuple((each, None) for each in hashes))
        if any(each not in self._grids for each in hashes):
            images = self._open(request)
            if isinstance(images, str):
                return _Asked(request, (), images)
            try:
                self._grids |= {each: self.backbone.grid(image) for each, image in zip(hashes, images, strict=True)}
            except ImageError as error:
                return _Asked(request, (), str(error))
        return _Asked(request, tuple((h, reducing.smaller(method, self._grids[h], rule)) for h in hashes))

    def _open(self, request: Request) -> list[Image] | str:
        """Decode a sample's images, once per batch, or say why they cannot be."""
        if request.doc_id not in self._images:
            try:
                self._images[request.doc_id] = self.built.images(request)
            except (OSError, SyntaxError, DecompressionBombError) as error:  # PIL calls a broken PNG a SyntaxError
                self._images[request.doc_id] = f"{NO_IMAGE}: {error}"
        return self._images[request.doc_id]

    def _encode(self, missing: Mapping[Key, tuple[Request, int]]) -> dict[Key, Seen | str]:
        """Decode, process and encode images that are not in the cache, and put them there."""
        seen: dict[Key, Seen | str] = {}
        ready: list[tuple[Key, int, Pixels]] = []
        for key, (request, number) in missing.items():
            images = self._open(request)
            if isinstance(images, str):
                seen[key] = images
                continue
            grids = None if key[1] is None else [key[1]]
            try:
                prompt = self.backbone.prompt([images[number]], request.text, grids)
            except ImageError as error:
                seen[key] = str(error)
                continue
            ready.append((key, prompt.spans[0][1] - prompt.spans[0][0], prompt.pixels[0]))
        made = self.room.map(ready, lambda part: self.backbone.encode([each[2] for each in part], self.needs))
        for (key, rows, pixels), features in zip(ready, made, strict=True):
            seen[key] = NO_ROOM if features is None else Seen(compact(features), rows, pixels.size)
        for key, each in seen.items():
            if isinstance(each, Seen):
                self.cache.put(key, each)
        return seen

    def _sample(
        self, asked: _Asked, seen: Mapping[Key, Seen | str], missing: Mapping[Key, tuple[Request, int]]
    ) -> Sample:
        found = [seen[key] for key in asked.keys]
        failure = asked.failure or next((each for each in found if isinstance(each, str)), None)
        if failure is not None:
            return Sample(asked.request, None, failure=failure)
        images = [each for each in found if isinstance(each, Seen)]
        encoded = sum(missing.get(key) == (asked.request, number) for number, key in enumerate(asked.keys))
        features, counts = tuple(each.features for each in images), self.cache.counts
        counts["hits"] += len(images) - encoded
        counts["encoded"] += encoded
        return Sample(asked.request, self._prompt(asked.request, images), features, len(images) - encoded, encoded)

    def _prompt(self, request: Request, images: Sequence[Seen]) -> Prompt:
        """Tokenise a request, once per batch and size of its images."""
        key = (request.doc_id, tuple(each.rows for each in images))
        if key not in self._prompts:
            rows, sizes = [each.rows for each in images], [each.size for each in images]
            self._prompts[key] = self.backbone.reprompt(rows, sizes, request.text)
        return self._prompts[key]
