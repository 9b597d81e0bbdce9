"""Times other CPU engines and ours on the same networks, all of them in turn: `cargo xtask bench peers` runs it.

    peers.py YOLO GRAPH_JSON [--nets NAME[:BATCH] ...] [--rounds N] [--iters N] [--threads N] [--bf16] [--check]

YOLO is our binary, GRAPH_JSON the example program of that name. Each network is exported to ONNX with random weights; speed does
not depend on their values. In a round every engine has its turn of some runs, of which the median counts; so a machine that
becomes slower or faster meanwhile does so for all. The table has the median over rounds of each engine, and that of the rounds'
ratios. `--check` compares results instead: those of ONNX Runtime with ours, of every layer.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime
import openvino

from network import Exporter, describe, random_weights
from safetensors import read, write

SIDE = 640
NETS = [
    "yolov5n",
    "yolov5s",
    "yolov5l",
    "yolov5n_C3_GhostDynamicConv",
    "yolov5s_C3_GhostDynamicConv",
    "yolov5l_C3_GhostDynamicConv",
    "yolov5s_C3_GhostDynamicConv:8",
    "yolov5s_C3_DynamicConv",
]
CHECKED = ["yolov5n:1", "yolov5n_C3_GhostDynamicConv:2"]
# Height and width of the pictures of a check: not square, so that swapped axes show.
CHECKED_SIZE = (320, 256)
# Of the largest value of a layer.
TOLERANCE = 1e-4


def arguments():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(prog="cargo xtask bench peers")
    parser.add_argument("yolo", help=argparse.SUPPRESS)
    parser.add_argument("graph_json", help=argparse.SUPPRESS)
    parser.add_argument("--nets", nargs="+", metavar="NAME[:BATCH]", help="networks, and how many pictures at a time")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="turns of each engine (5)")
    parser.add_argument("--iters", type=positive, default=5, metavar="N", help="runs of a turn of the other engines (5)")
    parser.add_argument("--threads", type=positive, default=cores, metavar="N", help="threads of each engine (all)")
    parser.add_argument("--bf16", action="store_true", help="time ours with --precision bf16 too")
    parser.add_argument("--check", action="store_true", help="compare the results, time nothing")
    return parser.parse_args()


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def named(net):
    """Name and batch of `NAME[:BATCH]`."""
    name, _, batch = net.partition(":")
    if not (batch or "1").isdecimal() or int(batch or 1) < 1:
        raise SystemExit(f"--nets {net}: expected a network's name, or NAME:BATCH")
    return name, int(batch or 1)


def onnx_session(model, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def peers(path, x, threads):
    """A function for each engine that runs the network once, and the precision that OpenVINO chooses by itself."""
    session = onnx_session(path, threads)
    core = openvino.Core()
    latency = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = {
        "OpenVINO f32": core.compile_model(path, "CPU", {**latency, "INFERENCE_PRECISION_HINT": "f32"}),
        "OpenVINO": core.compile_model(path, "CPU", latency),
    }
    functions = {"ONNX Runtime": lambda: session.run(None, {"images": x})}
    for name, network in compiled.items():
        functions[name] = lambda request=network.create_infer_request(): request.infer({0: x})
    return functions, compiled["OpenVINO"].get_property("INFERENCE_PRECISION_HINT").get_type_name()


def turn(function, iters):
    """The median of some runs in ms; one more at first brings the weights back into the caches."""
    function()
    times = []
    for _ in range(iters):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def run(command, **environment):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"`{shlex.join(command)}` ended with status {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def ours(args, name, batch, *more):
    command = [args.yolo, "benchmark", "--cfg", name, "--batch", batch, "--threads", args.threads, "--json", *more]
    # Candle's own threads obey the environment only.
    printed = run([str(word) for word in command], RAYON_NUM_THREADS=str(args.threads))
    return json.loads(printed.splitlines()[-1])["median_ms"]


def measure(args, name, batch):
    """The times of each engine, round by round, and OpenVINO's own precision."""
    graph = describe(args.graph_json, name, SIDE, SIDE)
    model, _ = Exporter(graph, random_weights(graph), batch).model()
    x = np.random.default_rng(1).random((batch, 3, SIDE, SIDE), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.onnx")
        with open(path, "wb") as file:
            file.write(model.SerializeToString())
        functions, precision = peers(path, x, args.threads)
    del model
    turns = {engine: lambda function=function: turn(function, args.iters) for engine, function in functions.items()}
    turns["ours"] = lambda: ours(args, name, batch)
    if args.bf16:
        turns["ours bf16"] = lambda: ours(args, name, batch, "--precision", "bf16")
    for function in functions.values():
        function()
    rounds = [{engine: time_it() for engine, time_it in turns.items()} for _ in range(args.rounds)]
    return {engine: [times[engine] for times in rounds] for engine in turns}, precision


def ratio(ours, *others):
    """Ours over the best other one: the median of the rounds, the least and the largest."""
    ratios = [mine / min(rest) for mine, *rest in zip(ours, *others)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"


def compare(args):
    columns = ["network", "batch", "ONNX Runtime ms", "OpenVINO f32 ms", "OpenVINO default ms", "ours ms"]
    columns += ["ours / best f32 peer"] + (["ours bf16 ms", "ours bf16 / OpenVINO default"] if args.bf16 else [])
    rows, precision = [], "f32"
    for net in args.nets or NETS:
        name, batch = named(net)
        times, precision = measure(args, name, batch)
        median = {engine: f"{statistics.median(values):.2f}" for engine, values in times.items()}
        row = [name, str(batch), *(median[engine] for engine in ("ONNX Runtime", "OpenVINO f32", "OpenVINO", "ours"))]
        row.append(ratio(times["ours"], times["ONNX Runtime"], times["OpenVINO f32"]))
        if args.bf16:
            row += [median["ours bf16"], ratio(times["ours bf16"], times["OpenVINO"])]
        rows.append(row)
        print(", ".join(f"{column} {cell}" for column, cell in zip(columns, row)), file=sys.stderr, flush=True)
    print("| " + " | ".join(columns) + " |")
    print("|---|" + "--:|" * (len(columns) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
    print(conditions(args, precision))


def conditions(args, precision):
    version = openvino.get_version().split("-")[0]
    command = shlex.join(["cargo", "xtask", "bench", "peers", *sys.argv[3:]])
    return (
        f"`{command}`: {SIDE}x{SIDE}, {args.threads} threads, {args.rounds} rounds; {processor()}; "
        f"{run([args.yolo, '--version']).strip()}{revision()}, ONNX Runtime {onnxruntime.__version__}, OpenVINO {version} "
        f"(by default in {precision})."
    )


def revision():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            facts = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name") or platform.machine()
    numbers = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    sets = [isa for isa in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if isa in facts.get("flags", "").split()]
    return ", ".join([name, *numbers, *sets])


def check(args):
    """Compares each layer of ONNX Runtime's with ours."""
    failed = False
    for net in args.nets or CHECKED:
        name, batch = named(net)
        graph = describe(args.graph_json, name, *CHECKED_SIZE)
        weights = random_weights(graph)
        model, outputs = Exporter(graph, weights, batch).model(every_layer=True)
        x = np.random.default_rng(1).random((batch, 3, *CHECKED_SIZE), dtype=np.float32)
        wanted = dict.fromkeys(outputs)
        theirs = onnx_session(model.SerializeToString(), args.threads).run(list(wanted), {"images": x})
        theirs = dict(zip(wanted, theirs))
        with tempfile.TemporaryDirectory() as folder:
            files = {key: os.path.join(folder, f"{key}.safetensors") for key in ("weights", "input", "output")}
            write(files["weights"], weights)
            write(files["input"], {"input": x})
            layers = ",".join(str(layer) for layer in range(len(outputs)))
            command = [args.yolo, "forward", "--cfg", name, "--features", layers]
            run(command + [word for key, file in files.items() for word in (f"--{key}", file)])
            mine = read(files["output"])
        errors = []
        for layer, value in enumerate(outputs):
            a, b = theirs[value], mine[f"features.{layer}"]
            if a.shape != b.shape:
                raise SystemExit(f"{name}, layer {layer}: ONNX Runtime gives {a.shape}, ours is {b.shape}")
            errors.append(float(np.abs(a - b).max() / np.abs(b).max()))
        rows = mine["output0"]
        worst = int(np.argmax(errors))
        good = all(error <= TOLERANCE for error in errors)  # of NaN, max() tells nothing
        failed |= not good
        print(
            f"{name}, batch {batch}: boxes {list(rows.shape)} differ by {errors[-1]:.1e} of their largest value "
            f"{np.abs(rows).max():.1f}, most in layer {worst} by {errors[worst]:.1e}; {TOLERANCE:.0e} allowed: "
            f"{'ok' if good else 'TOO MUCH'}"
        )
    if failed:
        raise SystemExit("ONNX Runtime and ours do not compute the same")


if __name__ == "__main__":
    given = arguments()
    check(given) if given.check else compare(given)
