"""Train a network that FSDP2 shards in a loop of its own; run by `torchrun`.

Usage: own_loop_fsdp.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import adautomix as am


class Net(nn.Module):
    """A small network without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.top = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 4]`."""
        logits: Tensor = self.out(self.top(self.body(x)).flatten(1))
        return logits


def make() -> tuple[Net, Any]:
    """A network and its method, the same in every process."""
    torch.manual_seed(0)
    net = Net()
    wrapped = am.wrap_model(net, tap="body", head="out", image_size=16)
    return net, am.create_method("adautomix", model=wrapped, num_classes=4, steps=4, rank=0)


def train(net: nn.Module, method: Any) -> list[float]:
    """Train three steps on the same batches in every process, and return the losses."""
    optimizer = torch.optim.SGD([*net.parameters(), *method.parameters()], lr=0.1)
    losses = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        images = torch.randn(6, 3, 16, 16, generator=generator)
        loss = method(images, torch.arange(6) % 4)
        optimizer.zero_grad()
        loss.backward()
        method.average_gradients()
        optimizer.step()
        method.after_step()
        losses.append(float(loss.detach()))
    return losses


def main(folder: Path) -> None:
    """Write losses and weights of a sharded and of a plain network, trained alike."""
    dist.init_process_group("gloo")
    net, method = make()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    losses = train(net, method)
    weights = {name: value.full_tensor() for name, value in net.state_dict().items()}
    plain, plain_method = make()
    expected = train(plain, plain_method)
    try:
        am.create_method("adautomix", model=net, num_classes=4, steps=4)
        message = ""
    except am.UsageError as error:
        message = str(error)
    record = {
        "losses": (losses, expected),
        "weights": (weights, plain.state_dict()),
        "teachers": (
            method.teacher.state_dict(),
            plain_method.teacher.state_dict(),
        ),
        "message": message,
    }
    torch.save(record, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
