"""Times dynamic convolutions in PyTorch: a line in says which, a line out says how long."""
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(int(sys.argv[1]))
print(torch.__version__, flush=True)

tensors = {}


def prepare(inputs, outputs, kernel, size, groups, batch, experts):
    torch.manual_seed(0)
    x = torch.randn(batch, inputs, size, size)
    taps = inputs // groups * kernel * kernel
    return x, torch.randn(experts, outputs * taps), torch.randn(experts, inputs) * 0.1, torch.zeros(experts)


def dynamic(x, kernels, weight, bias, shape):
    """As CondConv does it: the batch folded into the groups of one convolution."""
    inputs, outputs, kernel, size, groups, batch, _ = shape
    routing = torch.sigmoid(F.linear(x.mean((2, 3)), weight, bias))
    mixed = (routing @ kernels).view(batch * outputs, inputs // groups, kernel, kernel)
    y = F.conv2d(x.view(1, batch * inputs, size, size), mixed, None, 1, kernel // 2, 1, batch * groups)
    return y.view(batch, outputs, size, size)


def static(x, kernels, weight, bias, shape):
    inputs, outputs, kernel, size, groups, batch, _ = shape
    return F.conv2d(x, kernels[0].view(outputs, inputs // groups, kernel, kernel), None, 1, kernel // 2, 1, groups)


with torch.inference_mode():
    for line in sys.stdin:
        kind, count, *shape = map(int, line.split())
        shape = tuple(shape)
        if shape not in tensors:
            tensors.clear()
            tensors[shape] = prepare(*shape)
            for function in (dynamic, static):
                function(*tensors[shape], shape)
        function = dynamic if kind else static
        start = time.perf_counter()
        for _ in range(count):
            function(*tensors[shape], shape)
        print(time.perf_counter() - start, flush=True)
