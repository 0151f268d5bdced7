"""The machine that a plan is for: what its cards hold, and how fast they talk to each other."""

from dataclasses import dataclass

# Bytes that CUDA reports for a card of so many "GB", by `torch.cuda.get_device_properties(0).total_memory` as users post it: RTX 4090
# 23.6 GiB (an A10G with ECC has 22.1), RTX A6000 47.5 GiB (an L40S with ECC has 44.4), A100, A800 and H100 79.1 GiB.
CARDS = {24: 25.3e9, 48: 51.0e9, 80: 85.0e9}
FULL = 0.9  # of a card's memory, an assumption: the rest is CUDA's context, its libraries' workspaces and what lies between tensors
LINK_SHARE = 0.9  # of a link's rated speed that a large sum gets, an assumption
PROCESS_BYTES = 3e9  # of the host's memory that Python, torch and CUDA's libraries take in a process, an assumption


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes.

    Args:
        gpu_memory: of one GPU, GB as it is sold.
        interconnect: within a node, GB/s in each direction of one GPU.
        network: between nodes, Gb/s of one node.
        tflops: peak of one GPU.
    """

    num_gpus: int
    gpu_memory: float = 80
    tflops: float = 312
    gpus_per_node: int = 8
    interconnect: float = 200
    network: float = 200

    @property
    def nodes(self) -> int:
        return -(-self.num_gpus // self.gpus_per_node)

    @property
    def processes_a_node(self) -> int:
        return min(self.num_gpus, self.gpus_per_node)

    @property
    def room(self) -> float:
        """Bytes of a card that tensors may take."""
        return FULL * CARDS.get(round(self.gpu_memory), self.gpu_memory * 1e9)

    def sum_seconds(self, size: float) -> float:
        """Seconds in which `size` bytes on each GPU are added up over all: a ring, in which each link carries 2 (n − 1) / n of them."""
        return 2 * self.gather_seconds(size)

    def gather_seconds(self, size: float) -> float:
        """Seconds in which each GPU gets the `size` bytes of which each has its share: half a sum's ring."""
        if self.num_gpus == 1:
            return 0.0
        slowest = self.interconnect * 1e9 if self.nodes == 1 else min(self.interconnect * 1e9, self.network * 1e9 / 8)
        return (self.num_gpus - 1) / self.num_gpus * size / (slowest * LINK_SHARE)
