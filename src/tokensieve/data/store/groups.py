"""Which crops belong together, so that none of them is trained on while another is validated on.

N crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.data.extras import need
from tokensieve.data.sources.video import VIDEOS

# Frames are 'clip.mp4#3'; a picture or a table's row is never called that.
_SUFFIXES = "|".join(sorted(suffix[1:] for suffix in VIDEOS | {".gif"}))
_FRAME = rf"(?i)\.({_SUFFIXES})#\d+$"
_NUMBER = r"#\d+$"


def videos(keys: Any) -> Any:
    """The video of each frame, for a dictionary-encoded column of keys; "" for other pictures."""
    pa = need("pyarrow", "train", "to read a feature store")
    compute = need("pyarrow.compute", "train", "to read a feature store")
    names = keys.dictionary
    frame = compute.match_substring_regex(names, _FRAME)
    cut = compute.if_else(frame, compute.replace_substring_regex(names, _NUMBER, ""), "")
    again = cut.dictionary_encode()  # a dictionary holds nothing twice
    return pa.DictionaryArray.from_arrays(again.indices.take(keys.indices), again.dictionary)


def codes(columns: Sequence[Any]) -> Int[Tensor, "N"]:
    """One number per different value of several dictionary-encoded columns; -1 for ""."""
    pa = need("pyarrow", "train", "to read a feature store")
    column = pa.chunked_array(columns).unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    found = torch.from_numpy(column.indices.to_numpy(zero_copy_only=False).copy()).long()
    empty = column.dictionary.index("").as_py()
    return torch.where(found == empty, -1, found)


def grouped(picture_N: Int[Tensor, "N"], *kinds_KN: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """The smallest picture number of each crop's group: pictures of one number in any of K kinds
    are one group, and so is what hangs together by several such steps; -1 stands alone.
    """
    classes = []
    for kind_N in kinds_KN:
        mixed = torch.where(kind_N < 0, int(kind_N.max()) + 1 + picture_N, kind_N)
        classes.append(torch.unique(mixed, return_inverse=True)[1])
    group_N = picture_N
    while True:
        before_N = group_N
        for class_N in classes:
            least = torch.full((int(class_N.max()) + 1,), torch.iinfo(torch.long).max)
            least.scatter_reduce_(0, class_N, group_N, "amin")
            group_N = least[class_N]
        if torch.equal(group_N, before_N):
            return group_N
