"""A prompt with images: what stands for them in its text, and whose features take the places of which tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmc.errors import InputError
from llmc.runtime.backends import FloatArray, ImageFeatures, IntArray

if TYPE_CHECKING:
    from llmc.contracts.images import ImagesRecord
    from llmc.runtime.chat import Message
    from llmc.runtime.images import Image


@dataclass(frozen=True)
class SeenImages:
    """The features of a prompt's images.

    Attributes:
        places: of the tokens that they take the places of, ascending [N]
        features: [N, H]
        keys: what tells these tokens from those of other images: a negative number each
    """

    places: IntArray
    features: FloatArray
    keys: list[int]

    def between(self, start: int, stop: int) -> tuple[FloatArray, IntArray]:
        """Features of the tokens from `start` to `stop`, and how far behind `start` each is."""
        first, last = np.searchsorted(self.places, [start, stop])
        return self.features[first:last], self.places[first:last] - start

    def identify(self, tokens: list[int], start: int) -> list[int]:
        """The prompt's tokens from `start` on, each image's by its key."""
        first, last = np.searchsorted(self.places, [start, start + len(tokens)])
        for place, key in zip(self.places[first:last], self.keys[first:last], strict=True):
            tokens[int(place) - start] = key
        return tokens


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt's tokens, and the tiles of its images."""

    tokens: list[int]
    pixels: list[NDArray[np.float32]] = field(default_factory=list)


def features_of_rows(rows: Sequence[SeenImages | None], starts: IntArray, width: int) -> ImageFeatures | None:
    """For a step of `width` tokens, row i of which begins at starts[i]; None: it has none."""
    features, positions = [], []
    for row, seen in enumerate(rows):
        if seen is None:
            continue
        found, offsets = seen.between(int(starts[row]), int(starts[row]) + width)
        features.append(found)
        positions.append(np.stack([np.full(len(offsets), row), offsets], 1))
    if not any(map(len, features)):
        return None
    return np.concatenate(features), np.concatenate(positions)


def with_marks(text: str, images: int, record: ImagesRecord) -> str:
    """A text that does not say where its images stand begins with them."""
    return text if record.mark in text else f"{record.mark}\n" * images + text


def expanded(text: str, tiles: Sequence[int], record: ImagesRecord) -> str:
    """A text whose marks are replaced by what stands for images of so many tiles each."""
    parts = text.split(record.mark)
    if len(parts) - 1 != len(tiles):
        raise InputError(
            f"the prompt has {len(parts) - 1} places for images, written {record.mark}, and {len(tiles)} images; "
            "give as many"
        )
    shown = [_shown(count, record) for count in tiles]
    return parts[0] + "".join(one + part for one, part in zip(shown, parts[1:], strict=True))


def _shown(count: int, record: ImagesRecord) -> str:
    tags = [record.tile_tag.replace("#", str(number)) for number in range(1, count)] + [record.thumbnail_tag]
    return record.begin + "".join(tag + record.token * record.tile_tokens for tag in tags) + record.end


def parts_of(messages: Sequence[Message], record: ImagesRecord | None) -> tuple[list[Message], list[Image]]:
    """Messages whose content is text, with a mark and a line's end for each image, and these images. Those of a model
    that sees none stay as they are.
    """
    if record is None:
        if any(_is_image(part) for each in messages for part in _parts(each)):
            raise InputError("a message has an image, and this model takes text alone")
        return list(messages), []
    found: list[Any] = []
    plain: list[Message] = []
    for message in messages:
        pieces = []
        for part in _parts(message):
            if _is_image(part):
                found.append(part.get("image", part.get("path")))
                pieces.append(f"{record.mark}\n")
            elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                pieces.append(part["text"])
            else:
                raise InputError('a part of a message is neither {"type": "text", "text": …} nor an image')
        plain.append({**message, "content": "".join(pieces)} if pieces else message)
    return plain, found


def _parts(message: Message) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, (list, tuple)) else ()


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"
