"""Two processes that seed PyTorch differently: what they own besides the model must stay equal."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from torch.nn.parallel import DistributedDataParallel

import adautomix as am

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
model = DistributedDataParallel(torchvision.models.resnet18(num_classes=10))
method = am.create_method("adautomix", model=model, num_classes=10, steps=2)
optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.05)
generator = torch.Generator().manual_seed(rank)
for _ in range(2):
    images = torch.randn(4, 3, 32, 32, generator=generator)
    loss = method(images, torch.randint(10, (4,), generator=generator))
    optimizer.zero_grad()
    loss.backward()
    method.average_gradients()
    optimizer.step()
    method.after_step()
own = {name: value.detach().clone() for name, value in method.named_parameters()}
teacher = {name: value.detach().clone() for name, value in method.teacher.named_parameters()}

# A parameter that only one process used, and one that none did.
first, second = list(method.parameters())[:2]
optimizer.zero_grad()
if rank == 0:
    first.grad = torch.ones_like(first)
method.average_gradients()
record = {
    "own": own,
    "teacher": teacher,
    "used_by_one": None if first.grad is None else first.grad,
    "used_by_none": second.grad,
}
torch.save(record, Path(sys.argv[1]) / f"{rank}.pt")
dist.destroy_process_group()
