"""What onnxruntime alone needs for the images: read, run, keep nothing.

The peer of `calibration_cost.py`; takes model, folder, number of images and threads. Images are
read as deploykit reads them, in threads and ahead, so that the two differ in calibration only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime as ort

from deploykit import images
from deploykit.core.specs import Preprocessing


def main(model: str, folder: Path, count: int, threads: int) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    preprocessing = Preprocessing(crop=(224, 224), resize=256)
    for inputs, _ in images.batches(images.open_images(folder), preprocessing, 1, range(count)):
        session.run(None, {feed: inputs})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
