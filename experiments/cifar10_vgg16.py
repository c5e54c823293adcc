"""Claim: not run to the end yet.

VGG16 with batch norm for 32x32 pictures, on CIFAR-10, trained from scratch when the search starts. CIFAR10_DIR names
the folder with ``cifar10_jpeg.npz``. Half the published width by default, which is what two cores can train; set
`width=1.0` for the published one.
"""

import torch
from cifar10 import Cifar10, required
from torch import Tensor, nn

from autocompress import Budget, Experiment
from search_spaces.joint import make

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


class Cifar10Vgg16(Cifar10):
    """`width` scales the channels, `epochs` is how long the baseline is trained."""

    def __init__(self, width: float = 0.5, epochs: int = 12) -> None:
        self.width = width
        self.epochs = epochs

    def model(self) -> nn.Module:
        return Vgg16(self.width)

    def train(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = self.epochs * (len(inputs) // 128)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        model.train()
        for _ in range(self.epochs):
            for batch in torch.randperm(len(inputs))[: len(inputs) // 128 * 128].split(128):
                optimizer.zero_grad()
                self.loss(model(self.augment(inputs[batch], torch.default_generator)), targets[batch]).backward()
                optimizer.step()
                schedule.step()


required("cifar10_jpeg.npz")
experiment = Experiment(
    task=Cifar10Vgg16(),
    space=make(steps=(100, 200, 400)),
    objectives=("size_bytes", "latency_ms", "accuracy"),
    limits=("accuracy >= baseline - 0.05",),
    budget=Budget(trials=60),
    seed=0,
)
