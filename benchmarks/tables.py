"""Can the tables be trusted? Summed sensitivities against true divergences, predicted bytes and times against measured ones.

    CIFAR10_DIR=data python benchmarks/tables.py       (about fifteen minutes; without CIFAR10_DIR the MNIST case alone)

For the MNIST VGG and the CIFAR-10 ResNet-20. The divergence of every option alone is measured as a search measures it; then
50 policies are drawn at random from the joint space (channels, zeros and bits of every layer at once) and compressed, repaired
but not fine-tuned, and their true divergence from the uncompressed model, on training images that the sensitivities have not
seen, is compared with the sum over their options. Bytes and latency are predicted for 20 other policies by a table that was
fitted without them.
"""

import os
import time
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
import torch
from cases import opened
from printing import print_machine
from scipy.stats import spearmanr

from autocompress.compress import compress
from autocompress.policy import Policy
from autocompress.prior import Prior
from autocompress.profile import profile
from autocompress.sensitivity import divergences_of, sense
from autocompress.tables import CostError
from search_spaces import joint

CASES = {"MNIST VGG": "mnist_vgg", "CIFAR-10 ResNet-20": "cifar10_resnet20"}
POLICIES, PROFILED = 50, 20
CALIBRATION, EXAMPLES = 512, 256


def compare(name: str, file: str) -> None:
    """Prints how far the tables of one case are off."""
    task, data, baseline = opened(file)
    target = baseline.target
    sensitivity = sense(task, baseline, data, spread=lambda options: divergences_of(options, task, baseline, data), cache=None)
    costs = profile(task, baseline, data, policies=PROFILED)
    prior = Prior(baseline.layers, target, sensitivity, costs)

    inputs = torch.tensor(data["train"][0][np.random.default_rng(1).permutation(len(data["train"][0]))])
    calibration, examples = inputs[:CALIBRATION], inputs[CALIBRATION : CALIBRATION + EXAMPLES]
    model = baseline.model(task)
    with torch.no_grad():
        reference = model(examples)
    summed, true = [], []
    began = time.perf_counter()
    for policy in drawn(prior):
        student = compress(model, policy, calibration, groups=baseline.layers.groups)
        with torch.no_grad():
            true.append(float(task.divergence(student(examples), reference)))
        summed.append(prior.divergence(policy))
    seconds = (time.perf_counter() - began) / POLICIES
    ratios = np.array(true) / np.array(summed)
    rank = float(spearmanr(summed, true)[0])
    low, high = (float(np.quantile(ratios, share)) for share in (0.1, 0.9))
    rows = {
        "sensitivities": f"{len(sensitivity.entries)} options in {sensitivity.seconds:.0f} worker-seconds",
        "costs": f"{costs.seconds:.0f} worker-seconds",
        "divergence, summed": f"rank correlation {rank:.3f} with the true one of {POLICIES} policies ({seconds:.1f} s each)",
        "true / summed": f"median {median(ratios):.2f}, four fifths between {low:.2f} and {high:.2f}",
        "bytes, predicted": _in_words(costs.size_error),
        "latency, predicted": _in_words(costs.latency_error),
    }
    print(f"\n{name}\n")
    for what, found in rows.items():
        print(f"  {what:20s} {found}")


def drawn(prior: Prior) -> list[Policy]:
    """Random policies of the joint space whose summed divergence is finite; ranks by l1, so that no gradients are needed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found: list[Policy] = []
    while len(found) < POLICIES:
        policy = joint.space(study.ask(), prior.layers, prior.target).model_copy(update={"importance": "l1"})
        policy = policy.canonical(prior.layers, prior.target.menu)
        if np.isfinite(prior.divergence(policy)):
            found.append(policy)
    return found


def _in_words(error: CostError) -> str:
    return (
        f"off by {error.mean:.1%} on average, {error.largest:.1%} at most, of {error.policies} policies; "
        f"rank correlation {error.rank_correlation:.3f}"
    )


def main() -> None:
    torch.set_num_threads(1)
    print_machine()
    for name, file in CASES.items():
        if "cifar" in file and not os.environ.get("CIFAR10_DIR"):
            print(f"\n{name}: skipped; set CIFAR10_DIR to the folder of its data")
            continue
        compare(name, file)


if __name__ == "__main__":
    main()
