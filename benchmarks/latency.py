"""How steady is a measured latency? One compressed file timed again and again beside the uncompressed one.

    python benchmarks/latency.py                    (about two minutes; with nothing else on the machine, or with)

Prints the range of the ratio over repeated measurements, as trials measure it, and that of single sessions, which is what a
measurement of a tenth of a second would give.
"""

import os
import time
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from cases import opened
from printing import print_machine

from autocompress.compress import compress
from autocompress.measure import _least_times, measure_latency
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import runtime_of

TIMES = 24


def main() -> None:
    torch.set_num_threads(1)
    print_machine()
    task, data, baseline = opened("mnist_vgg")
    target = baseline.target
    inputs = torch.tensor(data["train"][0][:256])
    policy = Policy(
        channel_sparsity={group.name: 0.6 for group in baseline.layers.groups},
        layers={layer.name: LayerPolicy(weight_bits=4, activation_bits=8) for layer in baseline.layers},
    ).canonical(baseline.layers, target.menu)
    runtime = runtime_of(target)
    file = runtime.export(compress(baseline.model(task), policy, inputs), inputs[:8])
    sessions = []
    for _ in range(TIMES):
        ours, theirs = _least_times(runtime.load(file, target), runtime.load(baseline.file, target), target)
        sessions.append(ours / theirs)
        time.sleep(0.2)
    began = time.perf_counter()
    measured = [measure_latency(file, baseline.file, target).ratio for _ in range(TIMES)]
    seconds = (time.perf_counter() - began) / TIMES
    print(f"ratio in single sessions   {_in_words(sessions)}")
    print(f"ratio as trials measure it {_in_words(measured)}; {seconds:.2f} s each")


def _in_words(ratios: Sequence[float]) -> str:
    return f"{min(ratios):.3f} to {max(ratios):.3f}, median {np.median(ratios):.3f}, of {len(ratios)}"


if __name__ == "__main__":
    main()
