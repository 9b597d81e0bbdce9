"""Cuts the reference files down to what the picture and post-processing tests read.

Usage: python convert.py GOLDENS_FOLDER YOLOV5_FOLDER   (needs numpy, opencv-python, safetensors, torch; run in this folder)

GOLDENS_FOLDER holds yolov5n_bus_rect, yolov5n_bus_square and masks (.safetensors), written by PyTorch 2.11, OpenCV 5.0 and
the YOLOv5 repository of 2026-08; YOLOV5_FOLDER is a clone of it.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

goldens = Path(sys.argv[1])
png = [cv2.IMWRITE_PNG_COMPRESSION, 9]
for case in ("rect", "square"):
    golden = load_file(goldens / f"yolov5n_bus_{case}.safetensors")
    cv2.imwrite(f"pictures/bus_{case}.png", golden["letterboxed_rgb"][..., ::-1], png)
    if case == "rect":
        cv2.imwrite("pictures/bus.png", golden["image_bgr"], png)
    rows = golden["output0"][0]
    kept = rows[:, 4] > 0.0009  # below the least confidence of the tests, and ...
    kept[:: len(rows) // 50] = True  # ... fifty rows that must not matter
    names = ("nms", "nms_multilabel", "boxes")
    save_file({"output0": rows[kept], **{n: golden[n] for n in names}}, f"post/bus_{case}.safetensors")

# Masks at the resolution of a 150x110 picture, for boxes in its pixels.
sys.path.insert(0, sys.argv[2])
from utils.segment.general import process_mask_native  # noqa: E402

golden = load_file(goldens / "masks.safetensors")
boxes = np.round(golden["boxes"] * np.float32(150 / 160)).clip(0, [110, 150, 110, 150]).astype(np.float32)
proto, coefficients = (torch.from_numpy(golden[n]) for n in ("proto", "coefficients"))
native = process_mask_native(proto, coefficients, torch.from_numpy(boxes), (150, 110))
golden |= {"native_boxes": boxes, "native_mask": native.numpy().astype(np.uint8)}
save_file(golden, "post/masks.safetensors")

# One picture, 5x3 pixels, in the forms that are converted on reading. `*_expected.png` is what imread makes of them.
y, x = np.mgrid[0:3, 0:5].astype(np.uint16)
deep = np.stack([x * 13000 + 127, y * 30000 + 255, x * y * 8000 + 200], axis=2).astype(np.uint16)
alpha = np.full((3, 5, 1), 7000, np.uint16)
cv2.imwrite("pictures/rgb16.png", deep)
cv2.imwrite("pictures/rgba16.png", np.concatenate([deep, alpha], axis=2))
cv2.imwrite("pictures/grey16.png", deep[..., 0])
cv2.imwrite("pictures/rgb16.tiff", deep)
cv2.imwrite("pictures/rgb16_expected.png", cv2.imread("pictures/rgb16.png"))
cv2.imwrite("pictures/grey16_expected.png", cv2.imread("pictures/grey16.png"))
assert (cv2.imread("pictures/rgba16.png") == cv2.imread("pictures/rgb16.png")).all()
cv2.imwrite("pictures/rgb16_tiff_expected.png", cv2.imread("pictures/rgb16.tiff"))
