"""An FFCV decoder that cuts each image at a box of our choice, so that crops are a function of the seed.

FFCV's own random crop draws inside its threads, where no seed reaches. Imported only where FFCV is installed.
"""

# pyright: reportMissingImports=false
# ffcv is an extra that needs C++ libraries first.

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler

from robust_models.datasets.beton import IMAGE, JPEG

BOXED = np.dtype([*IMAGE.descr, ("top", "<u4"), ("left", "<u4"), ("tall", "<u4"), ("wide", "<u4")])


def boxed(samples: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IMAGE [N] and boxes [N,4] (top, left, height, width) -> BOXED [N], what BoxDecoder reads."""
    found = np.empty(len(samples), BOXED)
    for (name, *_), column in zip(IMAGE.descr, (samples[name] for name in samples.dtype.names or ()), strict=True):
        found[name] = column
    for name, column in zip(("top", "left", "tall", "wide"), boxes.T, strict=True):
        found[name] = column
    return found


class BoxDecoder(SimpleRGBImageDecoder):
    """Each image's box, resized to [size,size,3] by OpenCV's area interpolation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        """FFCV's question before compiling: what comes out, and how much memory it needs."""
        pixels = np.dtype("u1")
        largest = int(self.metadata["width"].max()) * int(self.metadata["height"].max()) * 3
        shape = (self.size, self.size, 3)
        whole = AllocationQuery((largest,), pixels)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=pixels)
        return state, (AllocationQuery(shape, pixels), whole)

    def generate_code(self) -> Callable[..., Any]:
        """FFCV's question for the function that it compiles; decodes, crops and resizes a batch."""
        read = self.memory_read
        span: Any = Compiler.get_iterator()
        decode_jpeg, cut_out = Compiler.compile(imdecode), Compiler.compile(resize_crop)
        jpeg = JPEG

        def decode(numbers, buffers, metadata, storage):
            cut, whole = buffers
            for i in span(len(numbers)):
                sample = metadata[numbers[i]]
                content = read(sample["at"], storage)  # pyright: ignore[reportCallIssue]
                height, width = np.uint32(sample["height"]), np.uint32(sample["width"])
                if sample["mode"] == jpeg:
                    pixels = whole[i][: 3 * height * width].reshape(height, width, 3)
                    decode_jpeg(content, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
                else:
                    pixels = content.reshape(height, width, 3)
                top, left = sample["top"], sample["left"]
                cut_out(pixels, top, top + sample["tall"], left, left + sample["wide"], cut[i])
            return cut[: len(numbers)]

        decode.is_parallel = True  # pyright: ignore[reportFunctionMemberAccess]
        return decode
