"""The documentation's loop for several processes, between set-up and a record of the result."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
generator = torch.Generator().manual_seed(rank)
loader = [
    (torch.randn(4, 3, 32, 32, generator=generator), torch.randint(10, (4,), generator=generator))
    for _ in range(2)
]
start: dict[str, torch.Tensor] = {}


def weights() -> dict[str, torch.Tensor]:
    modules = {"model": model.module, "method": method.method, "heads": method.heads}  # type: ignore[name-defined] # noqa: F821
    return {
        f"{owner}.{name}": value.detach().clone()
        for owner, module in modules.items()
        for name, value in module.named_parameters()
    }


# LOOP

params = method.method.params_for_step((4, 3, 32, 32), 0)  # type: ignore[name-defined] # noqa: F821
torch.save(
    {"weights": weights(), "lam": params.classifier_lam.tolist()}, Path(sys.argv[1]) / f"{rank}.pt"
)
if rank == 0:
    torch.manual_seed(0)
    fresh = torchvision.models.resnet18(num_classes=10)  # type: ignore[name-defined] # noqa: F821
    names = am.create_method("adautomix", model=fresh, num_classes=10, steps=2)  # type: ignore[name-defined] # noqa: F821
    parts = {"model": fresh, "method": names.method, "heads": names.heads}
    torch.save(
        {f"{o}.{n}": v.detach() for o, m in parts.items() for n, v in m.named_parameters()},
        Path(sys.argv[1]) / "start.pt",
    )
dist.destroy_process_group()
