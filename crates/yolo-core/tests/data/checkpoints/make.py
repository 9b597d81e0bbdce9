"""Writes the small checkpoints of this folder, and what PyTorch itself reads from them.

The networks are toys: their classes are defined here, under the module names that YOLOv5 checkpoints carry, so that the
pickles have the form of real ones.
"""

import argparse
import os
import sys
import types
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.layers import CondConv2d
from torch import nn

HERE = Path(__file__).parent


def module(name):
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    return sys.modules[name]


def under(name):
    """Puts a class into a module of the given name, as far as pickle can tell."""

    def put(cls):
        cls.__module__ = name
        cls.__qualname__ = cls.__name__
        setattr(module(name), cls.__name__, cls)
        return cls

    return put


@under("models.common")
class Conv(nn.Module):
    def __init__(self, c1, c2, k=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, padding=k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)


@under("models.common")
class DynamicConv_Single(nn.Module):
    def __init__(self, c1, c2, k=1, g=1, experts=4):
        super().__init__()
        self.routing = nn.Linear(c1, experts)
        self.cond_conv = CondConv2d(c1, c2, k, 1, "", 1, g, False, experts)


@under("models.common")
class DynamicConv(nn.Module):
    def __init__(self, c1, c2, k=1, g=1):
        super().__init__()
        self.conv = nn.Sequential(DynamicConv_Single(c1, c2, k, g), nn.BatchNorm2d(c2), nn.SiLU())


@under("models.common")
class GhostModule(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.primary_conv = DynamicConv(c1, c2 // 2)
        self.cheap_operation = DynamicConv(c2 // 2, c2 // 2, 3, c2 // 2)


@under("models.common")
class C3_GhostDynamicConv(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.cv1 = Conv(c1, c2 // 2)
        self.cv2 = Conv(c1, c2 // 2)
        self.cv3 = Conv(c2, c2)
        self.m = nn.Sequential(GhostModule(c2 // 2, c2 // 2))


@under("models.yolo")
class Detect(nn.Module):
    def __init__(self, nc, channels):
        super().__init__()
        self.nc = nc
        self.stride = torch.tensor([8.0, 16.0])
        self.register_buffer("anchors", torch.arange(8.0).view(2, 2, 2) / 3)
        self.register_buffer("grid", torch.zeros(3), persistent=False)
        self.register_parameter("absent", None)
        self.m = nn.ModuleList(nn.Conv2d(c, 2 * (nc + 5), 1) for c in channels)


@under("models.yolo")
class Model(nn.Module):
    def __init__(self, layers, yaml, names):
        super().__init__()
        self.yaml = yaml
        self.names = names
        self.model = nn.Sequential(*layers)
        self.stride = layers[-1].stride
        self.save = [1]
        self.hyp = {"lr0": 0.01}


def network(block, names, nc):
    torch.manual_seed(len(names))
    layers = [Conv(3, 4, 3), block, nn.MaxPool2d(2), Detect(len(names), [8, 8])]
    yaml = {
        "nc": nc,
        "depth_multiple": 0.33,
        "width_multiple": 1.0,
        "activation": "nn.SiLU()",
        "anchors": [[10, 13, 16.5, 30], [33, 23, 30, 61]],
        "backbone": [[-1, 1, "Conv", [4, 3]], [-1, 1, type(block).__name__, [8, False]]],
        "head": [[-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[1, -1], 1, "Detect", ["nc", "anchors"]]],
        "ch": 3,
        "dynamic": {"routing": "softmax", "temperature": 34.0, "note": None, "on": True, "list": []},
    }
    return Model(layers, yaml, names)


def randomise(net):
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(7))
    return net


def expect(name, state):
    state = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    save_file({k: v.float() if v.dtype == torch.float64 else v for k, v in state.items()}, HERE / f"{name}.safetensors")
    (HERE / f"{name}.names").write_text("\n".join(state) + "\n")


def save(name, data, state, **options):
    torch.save(data, HERE / f"{name}.pt", **options)
    expect(name, state)


def repack(source, target, change):
    with zipfile.ZipFile(HERE / source) as old, zipfile.ZipFile(HERE / target, "w") as new:
        for record in old.namelist():
            entry = change(record, old.read(record))
            if entry:
                new.writestr(zipfile.ZipInfo(entry[0]), entry[1])


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


@under("elsewhere.layers")
class Stranger(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


def main():
    # YOLOv5's own form: f16, ema finished, the module under `model`.
    plain = randomise(network(Conv(4, 8), ["person", "traffic light"], 2)).half()
    stripped = {"epoch": -1, "best_fitness": None, "model": plain, "ema": None, "updates": None, "optimizer": None}
    save("model_f16", stripped, plain.state_dict())

    # In the middle of training: f32, ema preferred, optimiser, options, numpy numbers, names as a dict; protocol 4.
    ghost = randomise(network(C3_GhostDynamicConv(4, 8), {0: "yes", 1: 'a "b"', 2: "猫"}, 80))
    optimiser = torch.optim.SGD(ghost.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in ghost.parameters()).backward()
    optimiser.step()
    training = {
        "epoch": 3,
        "best_fitness": __import__("numpy").float64(0.5),
        "model": plain,
        "ema": ghost,
        "updates": 12,
        "optimizer": optimiser.state_dict(),
        "opt": {"imgsz": 320, "weights": Path("yolov5n.pt"), "args": argparse.Namespace(device="cpu")},
        "date": "2026-01-01",
    }
    save("ema_f32_protocol4", training, ghost.state_dict(), pickle_protocol=4)

    # A state dict of every kind of tensor.
    base = torch.arange(24.0)
    shared = torch.randn(3)
    state = {
        "f32": torch.randn(2, 3, 1, 2),
        "f16": torch.randn(5).half(),
        "bf16": torch.randn(4, 1).bfloat16(),
        "f64": torch.randn(3).double(),
        "i64": torch.tensor(-3),
        "i32": torch.tensor([1, -2], dtype=torch.int32),
        "i16": torch.tensor([[3], [-4]], dtype=torch.int16),
        "i8": torch.tensor([-5], dtype=torch.int8),
        "u8": torch.tensor([250], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3),
        "transposed": base.view(4, 6).t(),
        "sliced": base.view(2, 3, 4)[:, 1:, ::2],
        "expanded": torch.tensor([[1.5], [2.5]]).expand(2, 3),
        "channels_last": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "offset": base[7:9],
        "shared.a": shared,
        "shared.b": shared,
        "parameter": nn.Parameter(torch.randn(2)),
    }
    save("state_dict", state, state)
    save("state_dict_nested", {"epoch": 1, "state_dict": plain.state_dict(), "names": ["a", "b"]}, plain.state_dict())
    save("bare_module", plain[0] if isinstance(plain, nn.Sequential) else plain.model, plain.model.state_dict())

    # The archive as PyTorch 1.6 wrote it: nothing but pickle, storages and version.
    def old(record, content):
        inner = record.split("/", 1)[1]
        keep = inner in ("data.pkl", "version") or inner.startswith("data/")
        return (f"archive/{inner}", content) if keep else None

    repack("model_f16.pt", "model_f16_old_layout.pt", old)
    repack("model_f16.pt", "big_endian.pt", lambda r, c: (r, b"big") if r.endswith("byteorder") else (r, c))

    torch.serialization.set_crc32_options(False)
    save("no_checksums", state, state)
    torch.serialization.set_crc32_options(True)

    # What must be refused.
    torch.save({"model": plain.state_dict()}, HERE / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"model": Evil()}, HERE / "evil.pt")
    torch.save({"model": {"weight": torch.ones(2), "bias": Evil()}}, HERE / "evil_tensor.pt")
    torch.save({"model": nn.Sequential(nn.Linear(1, 1), Stranger())}, HERE / "stranger.pt")
    torch.save({"epoch": 3}, HERE / "no_network.pt")
    torch.jit.save(torch.jit.script(nn.ReLU()), HERE / "torchscript.pt")


if __name__ == "__main__":
    main()
