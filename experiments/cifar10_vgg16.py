"""Claim: 56.1x smaller and 4.2x faster on ONNX Runtime (one thread, batch 1) at 78.7 % on test, the uncompressed network at
79.4 % (n = 5,000, +-1.1 points each). One search of 1,400 worker-seconds (`benchmarks/models.py vgg16 --worker-seconds 1400`),
18 trials, 2026-11-28, one core of an AMD EPYC with VNNI, other work on its neighbour, torch 2.13.0, onnxruntime 1.32.0.

VGG16 with batch norm for 32x32 pictures, on CIFAR-10, trained from scratch when the search starts. CIFAR10_DIR names
the folder with ``cifar10_jpeg.npz``. Half the published width by default, which is what two cores can train; set
`width=1.0` for the published one.
"""

from cifar10 import FromScratch, required
from torch import Tensor, nn

from autocompress import Budget, Experiment, Halving, Refit
from search_spaces import budgeted

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Vgg16(nn.Module):
    """Pictures of shape (n, 3, 32, 32) in, logits of shape (n, 10) out. `width` scales all channel counts."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels, stages = 3, []
        for stage in CHANNELS:
            layers: list[nn.Module] = []
            for published in stage:
                wanted = round(published * width)
                layers += [nn.Conv2d(channels, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU()]
                channels = wanted
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(images).flatten(1))
        return logits


class Cifar10Vgg16(FromScratch):
    def model(self) -> nn.Module:
        return Vgg16(self.width)


required("cifar10_jpeg.npz")
experiment = Experiment(
    task=Cifar10Vgg16(),
    space=budgeted.make(steps=100),
    start=budgeted.start,
    halving=Halving(eta=3, rungs=(0.0, 1 / 3)),
    refit=Refit(models=6, share=0.4),
    objectives=("size_bytes", "latency_ms", "accuracy"),
    limits=("accuracy >= baseline - 0.03",),
    budget=Budget(trials=100, minutes=15),
    seed=0,
)
