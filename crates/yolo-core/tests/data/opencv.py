"""Prints the tables of checksums in src/picture/tests.rs and src/post/tests.rs: what OpenCV (5.0) makes of formula pictures.

Usage: python opencv.py   (needs numpy, opencv-python)
"""

import cv2
import numpy as np


def noise(count, seed):
    """The high bytes of a xorshift32 stream."""
    out, state = np.empty(count, np.uint8), seed
    for i in range(count):
        state ^= (state << 13) & 0xFFFFFFFF
        state ^= state >> 17
        state ^= (state << 5) & 0xFFFFFFFF
        out[i] = state >> 24
    return out


def fnv(values, state=0xCBF29CE484222325):
    """FNV-1a over whole numbers."""
    for value in values:
        state = ((state ^ int(value)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return state


SIZES = [
    ((1, 1), (7, 5)), ((7, 5), (1, 1)), ((1, 9), (4, 3)), ((9, 1), (3, 4)), ((2, 2), (1, 1)), ((40, 30), (20, 15)),
    ((41, 31), (20, 15)), ((20, 15), (40, 30)), ((37, 23), (64, 11)), ((64, 11), (37, 23)), ((50, 50), (49, 51)),
    ((90, 60), (30, 20)), ((13, 17), (13, 40)), ((13, 17), (50, 17)), ((120, 80), (7, 3)), ((33, 33), (200, 1)),
    ((3, 3), (33, 65)), ((100, 70), (99, 69)),
]  # fmt: skip
print("resize: (from, to, checksum of the RGB bytes)")
for seed, ((w, h), to) in enumerate(SIZES, 1):
    picture = noise(w * h * 3, seed).reshape(h, w, 3)
    resized = cv2.resize(picture, to, interpolation=cv2.INTER_LINEAR)
    print(f"    (({w}, {h}), {to}, 0x{fnv(resized.ravel()):016x}),")

# Noise under a threshold, each noise pixel a block of `block` mask pixels a side.
MASKS = [
    (1, 1, 1, 128), (1, 12, 1, 128), (12, 1, 1, 128), (3, 3, 1, 128), (8, 8, 1, 60), (8, 8, 1, 200), (16, 11, 1, 100),
    (16, 11, 1, 150), (24, 24, 1, 250), (24, 24, 1, 20), (30, 20, 3, 110), (40, 40, 5, 150), (64, 48, 2, 128),
]  # fmt: skip
print("contours: (width, height, block, threshold, checksum of all points of 40 masks, and of the largest contours)")
for w, h, block, threshold in MASKS:
    every, largest = fnv([]), fnv([])
    for seed in range(1, 41):
        small = noise((h // block + 1) * (w // block + 1), seed * 7919) < threshold
        small = small.reshape(h // block + 1, w // block + 1)
        mask = small.repeat(block, 0).repeat(block, 1)[:h, :w].astype(np.uint8)
        contours = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
        every = fnv([len(contours)], every)
        for contour in contours:
            every = fnv([len(contour), *contour.ravel()], every)
        if contours:
            best = contours[np.array([len(c) for c in contours]).argmax()]
            largest = fnv([len(best), *best.ravel()], largest)
    print(f"    ({w}, {h}, {block}, {threshold}, 0x{every:016x}, 0x{largest:016x}),")
