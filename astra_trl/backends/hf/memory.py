"""Memory for keys and values: what is available, and what is held."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from astra_trl.backends.base import OutOfMemory

CACHE_SHARE = 0.3  # tester, target and a third model have a cache each; the rest is for logits and activations
# Names of the files of a cgroup, version 2 and 1: its limit, its usage, and in the statistics the file cache, which is
# part of the usage and gives way to other uses.
_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


@dataclass
class Budget:
    """Maximum number of bytes of all caches (`None`: unlimited), and the bytes that they hold."""

    limit: int | None = None
    in_use: int = 0
    peak: int = field(default=0, init=False)

    @property
    def free(self) -> int | None:
        """Bytes that can still be taken; `None` for any number."""
        return None if self.limit is None else max(0, self.limit - self.in_use)

    def take(self, count: int) -> None:
        """Count bytes as held. Raises `OutOfMemory` if they exceed the limit."""
        if self.limit is not None and self.in_use + count > self.limit:
            raise OutOfMemory(
                f"keys and values would take {self.in_use + count:,} bytes, and their budget is {self.limit:,}: raise "
                "cache_bytes, or lower max_length"
            )
        self.in_use += count
        self.peak = max(self.peak, self.in_use)

    def give_back(self, count: int) -> None:
        self.in_use -= count


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that this process can still allocate on a device; `None` if that is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type not in ("cpu", "mps"):  # an Apple GPU shares the machine's memory
        return None
    # The processes of a launcher share the machine.
    return min([psutil.virtual_memory().available, *_cgroup_bytes()]) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _cgroup_bytes(proc: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield the free bytes of every control group of this process that limits its memory, e.g. that of a container."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):  # version 2 has none
            continue
        # A container often sees its own group as the root, and the path of the host.
        root = mount / controllers
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _free_bytes(folder)


def _free_bytes(folder: Path) -> Iterator[int]:
    for limit, usage, cached in _FILES:
        try:
            most = (folder / limit).read_text().strip()
            if most.isdigit():  # version 2 writes "max" for no limit, version 1 a number beyond any memory
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / usage).read_text()) - sum(int(stat.get(name, 0)) for name in cached)
                yield max(0, int(most) - used)
        except OSError:
            continue
