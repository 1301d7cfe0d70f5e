"""How a model is shown images: what becomes of one before its vision tower, and what stands for it in a prompt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmc.contracts.part import AxisSize, Number, Part

Channels = Annotated[list[Number], Field(min_length=3, max_length=3)]
Deviations = Annotated[list[Annotated[Number, Field(gt=0)]], Field(min_length=3, max_length=3)]
Text = Annotated[str, Field(min_length=1, max_length=100)]
Tag = Annotated[str, Field(max_length=100)]


class ImagesRecord(Part):
    """An image is cut into tiles, whose features take the places of tokens in the prompt."""

    tile_size: AxisSize = Field(description="pixels of a tile's side")
    most_tiles: Annotated[int, Field(ge=1, le=64)] = Field(description="tiles of an image, without its thumbnail")
    tile_tokens: AxisSize = Field(description="tokens whose places the features of one tile take")
    mean: Channels = Field(description="of red, green and blue, between 0 and 1, subtracted first")
    deviation: Deviations = Field(description="what they are divided by then")
    mark: Text = Field(description="text that stands for an image in a prompt")
    token: Text = Field(description="text of the token whose places features take")
    begin: Tag = Field(description="text in front of an image's tiles")
    end: Tag = Field(description="text behind them")
    tile_tag: Tag = Field(description="text in front of each tile; # is its number, from 1")
    thumbnail_tag: Tag = Field(description="text in front of the thumbnail, the last of several tiles or the only one")
