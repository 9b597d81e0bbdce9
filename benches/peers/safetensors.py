"""Reads and writes f32 tensors as safetensors: the length of a JSON header, the header, the values."""

import json

import numpy as np


def write(path, tensors):
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, dtype="<f4").tobytes())


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    tensors = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] != "F32":
            raise SystemExit(f"{path}: `{name}` is {about['dtype']}, expected F32")
        first, last = about["data_offsets"]
        tensors[name] = np.frombuffer(data[start + first : start + last], "<f4").reshape(about["shape"])
    return tensors
