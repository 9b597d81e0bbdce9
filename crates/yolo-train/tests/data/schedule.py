"""Prints the table of rates in src/optim/schedule.rs: what YOLOv5's training loop sets, with PyTorch's LambdaLR.

    pip install torch==2.11.0 numpy && python schedule.py

The loop is train.py's without the training: rates of the warm-up are set a batch, the scheduler steps once an epoch, and after
the last batch of the warm-up nothing touches a rate until it does.
"""

import warnings

import numpy as np
import torch

# The scheduler steps before any optimiser does.
warnings.filterwarnings("ignore")

LR0, LRF, EPOCHS, MOMENTUM = 0.01, 0.1, 10, 0.937
BIAS_LR, START_MOMENTUM = 0.1, 0.8


def factor(epoch):
    """A straight line from 1 to LRF."""
    return (1 - epoch / EPOCHS) * (1 - LRF) + LRF


def rates(batches, warmup_epochs):
    """By batch: epoch, rates of biases and weights, momentum."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(3)]
    optimizer = torch.optim.SGD(groups, lr=LR0, momentum=MOMENTUM, nesterov=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scheduler.last_epoch = -1
    warmup = max(round(warmup_epochs * batches), 100)
    for epoch in range(EPOCHS):
        for index in range(batches):
            step = epoch * batches + index
            if step <= warmup:
                for place, group in enumerate(optimizer.param_groups):
                    start = BIAS_LR if place == 0 else 0.0
                    group["lr"] = float(np.interp(step, [0, warmup], [start, group["initial_lr"] * factor(epoch)]))
                    group["momentum"] = float(np.interp(step, [0, warmup], [START_MOMENTUM, MOMENTUM]))
            bias, weight, _ = optimizer.param_groups
            yield step, epoch, bias["lr"], weight["lr"], weight["momentum"]
        scheduler.step()


if __name__ == "__main__":
    for batches, warmup_epochs in [(125, 3.0), (40, 2.4), (400, 0.5)]:
        warmup = max(round(warmup_epochs * batches), 100)
        # About the end of the warm-up, and the ends of the epoch that it lies in and of the next.
        last = (warmup // batches + 1) * batches - 1
        steps = {warmup // 2, warmup, warmup + 1, last, last + 1, last + batches, last + batches + 1, EPOCHS * batches - 1}
        for step, epoch, bias, weight, momentum in rates(batches, warmup_epochs):
            if step in steps:
                print(f"({batches}, {warmup}, {step}, {epoch}, {bias!r}, {weight!r}, {momentum!r}),")
