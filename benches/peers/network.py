"""A network of ours as other engines take it: weights at random, and the ONNX model that PyTorch would export.

`describe` asks the example program `graph_json` for the network's operations; nothing else here knows about modules or layers.
"""

import json
import subprocess

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
BATCH_NORM_EPS = 1e-3


def describe(program, name, height, width):
    """The operations, parameters and shapes of the network `name`."""
    done = subprocess.run([program, name, str(height), str(width)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} at {height}x{width}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def random_weights(graph, seed=0):
    """Values by name that keep maps at the same size from layer to layer, and are neither 0 nor 1 where a new network's are."""
    rng = np.random.default_rng(seed)
    values = {}
    for param in graph["params"]:
        name, shape, kind = param["name"], param["shape"], param["kind"]
        if isinstance(param["init"], dict) and "Values" in param["init"]:
            value = np.array(param["init"]["Values"])
        elif name.endswith("running_var") or kind == "NormWeight":
            value = rng.uniform(0.7, 1.4, shape)
        elif kind == "Weight":
            value = rng.standard_normal(shape) * (2 / fan_in(graph, name, shape)) ** 0.5
        else:
            value = rng.standard_normal(shape) * 0.1
        values[name] = value.reshape(shape).astype(np.float32)
    return values


def fan_in(graph, name, shape):
    """Inputs of one output; experts are flattened kernels, whose sizes only their operation knows."""
    for node in graph["nodes"]:
        kind, op = parts(node["op"])
        if kind == "DynamicConv2d" and graph["params"][op["experts"]]["name"] == name:
            return shape[1] // op["geometry"]["out_channels"]
    return max(int(np.prod(shape[1:])), 1)


def parts(op):
    """Kind and attributes: an operation without attributes is a mere string."""
    return (op, None) if isinstance(op, str) else next(iter(op.items()))


class Exporter:
    """Writes one ONNX node after another; `values` names the result of each node of ours."""

    def __init__(self, graph, weights, batch):
        self.graph, self.weights, self.batch = graph, weights, batch
        self.nodes, self.constants, self.values, self.folded = [], [], [], set()

    def add(self, kind, inputs, outputs=1, **attributes):
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def reshape(self, x, shape):
        return self.add("Reshape", [x, self.constant(shape, np.int64)])

    def value(self, param):
        return self.weights[self.graph["params"][param]["name"]]

    def param(self, param):
        return self.constant(self.value(param))

    def shape(self, node):
        return parts(self.graph["shapes"][node])[1]

    def model(self, every_layer=False):
        """The model, and the names of its outputs: that of each layer, or only the last."""
        for index, node in enumerate(self.graph["nodes"]):
            kind, op = parts(node["op"])
            write = getattr(self, kind, None)
            if write is None:
                raise SystemExit(f"{self.graph['name']}: there is no ONNX form of {kind} here")
            self.values.append(write(index, op, [self.values[i] for i in node["inputs"]]))
        layers = [self.values[node] for node in self.graph["layers"]]
        outputs = layers if every_layer else layers[-1:]
        tensor = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        graph = helper.make_graph(
            self.nodes,
            self.graph["name"],
            [tensor("images", [self.batch, *self.shape(0)])],
            [tensor(name, None) for name in dict.fromkeys(outputs)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8), outputs

    def norm_after(self, index):
        """The batch normalisation that alone reads a convolution, which an exporter folds into it."""
        readers = [i for i, node in enumerate(self.graph["nodes"]) if index in node["inputs"]]
        if len(readers) != 1 or index in self.graph["layers"]:
            return None
        kind, op = parts(self.graph["nodes"][readers[0]]["op"])
        return (readers[0], op) if kind == "BatchNorm" else None

    # One method for each operation, by its name: its place among our nodes, its attributes, what it reads.

    def Input(self, index, op, inputs):
        return "images"

    def Conv2d(self, index, op, inputs):
        weight = self.value(op["weight"]).astype(np.float64)
        bias = np.zeros(len(weight)) if op["bias"] is None else self.value(op["bias"]).astype(np.float64)
        if (norm := self.norm_after(index)) is not None:
            self.folded.add(norm[0])
            scale, shift, mean, var = (self.value(norm[1][k]).astype(np.float64) for k in ("weight", "bias", "mean", "var"))
            scale = scale / np.sqrt(var + BATCH_NORM_EPS)
            weight, bias = weight * scale[:, None, None, None], (bias - mean) * scale + shift
        return self.convolve(inputs[0], self.constant(weight), op["geometry"], bias=self.constant(bias))

    def convolve(self, x, weight, geometry, bias=None, samples=1):
        return self.add(
            "Conv",
            [x, weight] if bias is None else [x, weight, bias],
            kernel_shape=geometry["kernel"],
            strides=geometry["stride"],
            pads=geometry["padding"] * 2,
            dilations=geometry["dilation"],
            group=geometry["groups"] * samples,
        )

    def Route(self, index, op, inputs):
        kind, route = parts(op["route"])
        if kind != "Linear":
            raise SystemExit(f"{self.graph['name']}: there is no ONNX form of attention routing here")
        pooled = self.add("Flatten", [self.add("GlobalAveragePool", inputs)], axis=1)
        logits = self.add("Gemm", [pooled, self.param(route["weight"]), self.param(route["bias"])], transB=1)
        kind, softmax = parts(route["activation"])
        if kind == "Sigmoid":
            return self.add("Sigmoid", [logits])
        return self.add("Softmax", [self.add("Div", [logits, self.constant(softmax["temperature"])])], axis=1)

    def DynamicConv2d(self, index, op, inputs):
        """Samples become groups of one large sample: PyTorch has no other way to give each sample its own kernels."""
        geometry, batch = op["geometry"], self.batch
        reads, writes = self.shape(self.graph["nodes"][index]["inputs"][0]), self.shape(index)
        mixed = self.add("MatMul", [inputs[1], self.param(op["experts"])])
        weight = [batch * writes[0], reads[0] // geometry["groups"], *geometry["kernel"]]
        one = self.reshape(inputs[0], [1, batch * reads[0], *reads[1:]])
        bias = None
        if op["bias"] is not None:
            bias = self.reshape(self.add("MatMul", [inputs[1], self.param(op["bias"])]), [batch * writes[0]])
        y = self.convolve(one, self.reshape(mixed, weight), geometry, bias=bias, samples=batch)
        y = self.add("Transpose", [y], perm=[1, 0, 2, 3])
        return self.reshape(y, [batch, *writes])

    def BatchNorm(self, index, op, inputs):
        if index in self.folded:
            return inputs[0]
        params = [self.param(op[k]) for k in ("weight", "bias", "mean", "var")]
        return self.add("BatchNormalization", [inputs[0], *params], epsilon=BATCH_NORM_EPS)

    def Activation(self, index, op, inputs):
        if op == "SiLU":
            return self.add("Mul", [inputs[0], self.add("Sigmoid", inputs)])
        if op == "Identity":
            return inputs[0]
        named = {"ReLU": "Relu", "Sigmoid": "Sigmoid", "Tanh": "Tanh"}
        if not isinstance(op, str) or op not in named:
            raise SystemExit(f"{self.graph['name']}: there is no ONNX form of the activation {op} here")
        return self.add(named[op], inputs)

    def MaxPool2d(self, index, op, inputs):
        window = {k: [op[a]] * n for k, a, n in (("kernel_shape", "kernel", 2), ("strides", "stride", 2), ("pads", "padding", 4))}
        return self.add("MaxPool", inputs, **window)

    def Upsample(self, index, op, inputs):
        scales = self.constant([1, 1, op["scale"], op["scale"]])
        nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.add("Resize", [inputs[0], "", scales], **nearest)

    def Add(self, index, op, inputs):
        return self.add("Add", inputs)

    def Concat(self, index, op, inputs):
        return self.add("Concat", inputs, axis=1)

    def Narrow(self, index, op, inputs):
        return self.add("Slice", [inputs[0], *(self.constant([n], np.int64) for n in (0, op["channels"], 1, 1))])

    def Detect(self, index, op, inputs):
        anchors, classes, count, masks = self.value(op["anchors"]), op["classes"], op["per_level"], op["masks"]
        if masks:
            raise SystemExit(f"{self.graph['name']}: there is no ONNX form of masks here")
        columns, levels = 5 + classes, []
        two, pieces = self.constant(2), self.constant([2, 2, 1 + classes], np.int64)
        for level, (x, stride) in enumerate(zip(inputs, self.graph["strides"])):
            _, height, width = self.shape(self.graph["nodes"][index]["inputs"][level])
            x = self.reshape(x, [self.batch, count, columns, height, width])
            x = self.add("Sigmoid", [self.add("Transpose", [x], perm=[0, 1, 3, 4, 2])])
            centre, size, rest = self.add("Split", [x, pieces], outputs=3, axis=4)
            full = (1, count, height, width, 2)
            rows, cols = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
            cells = np.broadcast_to(np.stack([cols, rows], -1) - 0.5, full)
            centre = self.add("Add", [self.add("Mul", [centre, two]), self.constant(cells)])
            centre = self.add("Mul", [centre, self.constant(stride)])
            sides = np.broadcast_to(anchors[level].reshape(1, count, 1, 1, 2) * stride, full)
            size = self.add("Pow", [self.add("Mul", [size, two]), two])
            size = self.add("Mul", [size, self.constant(sides)])
            y = self.add("Concat", [centre, size, rest], axis=4)
            levels.append(self.reshape(y, [self.batch, count * height * width, columns]))
        return self.add("Concat", levels, axis=1)
