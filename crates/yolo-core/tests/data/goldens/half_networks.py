"""Stores the weights of the two whole networks in f16 and computes what PyTorch gives for the weights so rounded.

Usage: python half_networks.py GOLDENS_FOLDER YOLOV5_FOLDER   (torch 2.11, timm 1.0.31; run in this folder)

GOLDENS_FOLDER holds net_n_detect_C3_GhostDynamicConv and net_n_segment_C3_GhostDynamicConv in f32; before rounding, the
networks built here give those files' own outputs to 3e-7 of the largest value.
"""

import math
import sys

import torch
import yaml
from safetensors.torch import load_file, save_file
from timm.layers import CondConv2d
from torch import nn

goldens = sys.argv[1]
sys.path.insert(0, sys.argv[2])
from models.yolo import DetectionModel, SegmentationModel  # noqa: E402


class Routed(nn.Module):
    def __init__(self, c1, c2, k, g):
        super().__init__()
        self.routing = nn.Linear(c1, 4)
        self.cond_conv = CondConv2d(c1, c2, k, 1, k // 2, 1, g, False, 4)

    def forward(self, x):
        return self.cond_conv(x, torch.sigmoid(self.routing(x.mean((2, 3)))))


class Dynamic(nn.Module):
    def __init__(self, c1, c2, k, g=1):
        super().__init__()
        self.conv = nn.Sequential(Routed(c1, c2, k, g), nn.BatchNorm2d(c2, eps=1e-3), nn.SiLU())

    def forward(self, x):
        return self.conv(x)


class Ghost(nn.Module):
    def __init__(self, c):
        super().__init__()
        half = math.ceil(c / 2)
        self.c, self.primary_conv, self.cheap_operation = c, Dynamic(c, half, 1), Dynamic(half, half, 3, half)

    def forward(self, x):
        x = self.primary_conv(x)
        return torch.cat([x, self.cheap_operation(x)], 1)[:, : self.c]


for kind, network in (("detect", DetectionModel), ("segment", SegmentationModel)):
    name = f"net_n_{kind}_C3_GhostDynamicConv"
    description = yaml.safe_load(open(f"{goldens}/{name}.yaml"))
    for row in description["backbone"] + description["head"]:
        row[2] = row[2].replace("C3_GhostDynamicConv", "C3")
    model = network(description, ch=3)
    for i in (8, 13):
        block = model.model[i]
        block.m = nn.Sequential(*(Ghost(block.cv1.conv.out_channels) for _ in block.m))
    model.eval()
    golden = load_file(f"{goldens}/{name}.safetensors")
    half = {key: value.half() for key, value in golden.items() if key.startswith("model.")}
    model.load_state_dict({key: value.float() for key, value in half.items()}, strict=False)
    with torch.no_grad():
        outputs = model(golden["input"])
    named = {"output0": outputs[0]} | ({"output1": outputs[1]} if kind == "segment" else {})
    save_file({**half, "input": golden["input"], **{k: v.contiguous() for k, v in named.items()}}, f"{name}.safetensors")
