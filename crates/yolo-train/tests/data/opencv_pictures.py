"""Prints the tables of checksums in src/data/opencv_tests.rs: what OpenCV (5.0) makes of pictures of noise.

Usage: python opencv_pictures.py   (needs numpy, opencv-python)
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
    ((8, 6), (4, 3)), ((9, 6), (3, 2)), ((12, 20), (3, 4)), ((41, 31), (20, 15)), ((100, 70), (99, 69)), ((64, 48), (33, 25)),
    ((120, 80), (7, 3)), ((50, 50), (49, 50)), ((640, 10), (320, 5)), ((81, 108), (32, 43)), ((1, 9), (1, 3)), ((33, 7), (1, 1)),
]  # fmt: skip
print("INTER_AREA: (from, to, checksum of the RGB bytes)")
for seed, ((w, h), to) in enumerate(SIZES, 1):
    picture = noise(w * h * 3, seed).reshape(h, w, 3)
    print(f"    (({w}, {h}), {to}, 0x{fnv(cv2.resize(picture, to, interpolation=cv2.INTER_AREA).ravel()):016x}),")

POLYGONS = [
    (1, 3, 20, 20), (2, 4, 30, 30), (3, 5, 40, 40), (4, 8, 50, 50), (7, 12, 64, 64), (8, 30, 100, 100), (9, 2, 20, 20),
    (10, 1, 20, 20),
]  # fmt: skip
print("fillPoly: (seed, corners, side of the picture, side of the square that corners are drawn from, checksum of 40 masks)")
for seed, corners, side, spread in POLYGONS:
    state = fnv([])
    for polygon in range(40):
        bytes = noise(corners * 4, seed * 1000 + polygon).astype(np.int32).reshape(-1, 2, 2)
        points = (bytes[..., 0] * 256 + bytes[..., 1]) % spread - (spread - side) // 2
        mask = np.zeros((side, side), np.uint8)
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
        state = fnv(mask.ravel(), state)
    print(f"    ({seed}, {corners}, {side}, {spread}, 0x{state:016x}),")

print("HSV: (gains of hue, saturation, value, the RGB bytes)")
picture = noise(3 * 64, 5).reshape(2, 32, 3)[..., ::-1].copy()
steps = np.arange(0, 256, dtype=np.float64)
for gains in [(1.0, 1.0, 1.0), (1.015, 0.5, 1.3), (0.985, 1.7, 0.6), (0.5, 1.2, 1.0)]:
    scaled = [steps * gain for gain in gains]
    tables = [(scaled[0] % 180).astype(np.uint8), *(np.clip(s, 0, 255).astype(np.uint8) for s in scaled[1:])]
    channels = cv2.split(cv2.cvtColor(picture, cv2.COLOR_BGR2HSV))
    changed = cv2.merge([cv2.LUT(channel, table) for channel, table in zip(channels, tables)])
    changed = cv2.cvtColor(changed, cv2.COLOR_HSV2BGR)[..., ::-1]
    print(f"    ({list(gains)}, {changed.tobytes().hex()!r}),")
