"""Options of where a command runs, and with how many workers."""

from dataclasses import dataclass

from beamclip.number_or_range import NumberOrRange, check_number_or_range, least_and_most
from beamclip.ranges import Count, Natural, NonNegative, Positive, check_ranges


@dataclass(frozen=True)
class WorkersConfig:
    """Where a run trains, and with how many workers."""

    num_workers: NumberOrRange = 1
    """Workers, each with its share of the global batch. 2..8: as many as the cluster has room for, at least 2
    and at most 8; their number follows the nodes that are lost and added, and the batches stay the same.
    0: train in the command's own process, which starts sooner, without Ray: for small jobs and debugging."""
    use_gpu: bool = False
    """Train on GPUs."""
    gpus_per_worker: Positive = 1.0
    """GPUs that Ray reserves for a worker with --use-gpu; below 1, several runs or trials share one."""
    cpus_per_worker: NonNegative | None = None
    """CPUs that Ray reserves for a worker, by default 1 with --use-gpu, else 0.5; the remaining ones read the
    data, of which each node keeps at least one."""
    threads_per_worker: Count | None = None
    """CPU threads that torch uses in a worker; by default the processors of its node, split among the workers
    there. Small models and batches train faster with fewer: the remaining processors read the data."""
    max_failures: Natural = 3
    """How often the workers are restarted from the last checkpoint after one of them was lost."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_number_or_range("num_workers", self.num_workers)

    @property
    def without_ray(self) -> bool:
        """Whether the command's own process does all the work."""
        return self.num_workers == 0

    @property
    def least_workers(self) -> int:
        """Number of workers without which nothing starts."""
        return least_and_most(self.num_workers)[0]

    @property
    def most_workers(self) -> int:
        """Number of workers at most."""
        return least_and_most(self.num_workers)[1]

    @property
    def is_elastic(self) -> bool:
        """Whether their number may change while they work."""
        return self.least_workers < self.most_workers

    @property
    def world_size(self) -> int:
        """Number of processes that train together, at most."""
        return max(1, self.most_workers)

    @property
    def worker_cpus(self) -> float:
        """CPUs that Ray reserves for one worker."""
        # A worker on a GPU keeps one CPU busy; on CPUs, the threads of torch take turns with the reading.
        default = 1.0 if self.use_gpu else 0.5
        return default if self.cpus_per_worker is None else self.cpus_per_worker

    @property
    def worker_gpus(self) -> float:
        """GPUs that Ray reserves for one worker."""
        return self.gpus_per_worker if self.use_gpu else 0.0

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for one worker: resource -> amount."""
        return {"CPU": self.worker_cpus, **({"GPU": self.worker_gpus} if self.use_gpu else {})}
