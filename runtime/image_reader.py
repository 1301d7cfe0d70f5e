"""Images of a prompt: from files to tokens and features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from llmc.errors import InputError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import Backend, FloatArray
from llmc.runtime.image_prompt import ReadPrompt, SeenImages, expanded
from llmc.runtime.images import Image, digest, open_image, tiles
from llmc.runtime.tokenizer import Tokenizer

_KEPT = 4  # images, whose features are not computed again: a conversation comes back to them with every question


class ImageReader:
    """Of a model that takes images; InputError for one that does not, or does not here.

    Attributes:
        token: the one whose places features take
    """

    def __init__(self, artifact: Artifact, tokenizer: Tokenizer, backend: Backend) -> None:
        record = artifact.manifest.model.images
        if record is None:
            raise InputError(f"{artifact.path}: this model takes text alone, no images")
        if not backend.has_vision:
            built = artifact.target_file("onnxruntime", "vision") is not None
            advice = "load it with backend='onnxruntime'" if built else "add `onnxruntime` to the recipe's targets"
            raise InputError(f"{artifact.path}: what runs it here takes text alone; {advice}")
        token = tokenizer.token_to_id(record.token)
        if token is None:
            raise InputError(f"{artifact.path}: its tokenizer has no token {record.token!r} for images; build it again")
        self.record, self.token = record, token
        self._tokenizer, self._backend = tokenizer, backend
        self._known: OrderedDict[int, FloatArray] = OrderedDict()

    def read(self, text: str, images: Sequence[Image], add_special_tokens: bool = True) -> ReadPrompt:
        """A text with a mark for each image; InputError where they do not fit the context."""
        pixels = [tiles(open_image(image), self.record) for image in images]
        context, count = self._backend.context, sum(map(len, pixels))
        needed = count * self.record.tile_tokens
        if needed > context:
            raise InputError(
                f"{len(images)} images are {count} tiles of {self.record.tile_tokens} tokens, which do not fit the "
                f"context of {context}; show fewer"
            )
        shown = expanded(text, [len(each) for each in pixels], self.record)
        tokens = self._tokenizer.encode(shown, add_special_tokens, fits=context).ids
        if (found := tokens.count(self.token)) != needed:
            raise InputError(
                f"the prompt has {found} tokens {self.record.token} for {count} tiles, which take {needed}; leave that "
                "text to the images"
            )
        return ReadPrompt(tokens, pixels)

    def features(self, read: ReadPrompt) -> SeenImages:
        """Computes those that are not known from an earlier prompt."""
        features, keys = [], []
        for pixels in read.pixels:
            name = digest(pixels)
            known = self._known.pop(name, None)
            if known is None:
                known = self._backend.image_features(pixels)
            self._known[name] = known
            features.append(known)
            keys += [-1 - name] * len(known)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        places = np.flatnonzero(np.array(read.tokens) == self.token)
        return SeenImages(places, np.concatenate(features), keys)
