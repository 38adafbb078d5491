"""Where the units of a run are computed: in this process, in the ranks of torchrun or SLURM, or in actors of a Ray cluster.

An engine only says which process takes which unit. Units are the manifest's, `UnitRunner` commits them, and what is done
is what has a sidecar: so the files are the same whichever engine wrote them, and a run may go on with another one. All
processes must see DEST, and the inputs, under the same path.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadArgument, IncompleteRun, MissingExtra, ZigguratError
from .manifest import ABOUT, Manifest

if TYPE_CHECKING:
    from .unit import UnitRunner

__all__ = ["await_plan", "own_device", "run_on_ray", "world"]

PASSES = 3  # over units whose workers were lost, before the run is left to the next command
ATTEMPTS = 5  # at one unit: what ends its worker each time will do so again


# ------------------------------------------------------- ranks of torchrun and SLURM


def world(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """The rank of this process and the number of processes started with it; (0, 1) for one that was started alone.

    torchrun's RANK and WORLD_SIZE; else the task of a SLURM step (`srun`), of a job array (`sbatch --array=0-7`), or of a
    step within an array. Raises `BadArgument` for numbers that do not fit together.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    else:
        rank, size = 0, 1
        if "SLURM_STEP_NUM_TASKS" in env:  # set by srun only: a batch script alone is one process, whatever --ntasks says
            rank, size = _number(env, "SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS")
        if "SLURM_ARRAY_TASK_ID" in env:
            first, last, count = (_number(env, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT"))
            step = int(env.get("SLURM_ARRAY_TASK_STEP", 1))
            if (last - first) // step + 1 != count:
                raise BadArgument(f"a job array of {count} tasks from {first} to {last} has gaps; give one without, as "
                                  f"--array=0-{count - 1}")
            rank, size = (_number(env, "SLURM_ARRAY_TASK_ID") - first) // step * size + rank, count * size
    if not 0 <= rank < size:
        raise BadArgument(f"this process is rank {rank} of {size}; ranks count from 0 to {size - 1}")
    return rank, size


def own_device(environment: Mapping[str, str] | None = None) -> str:
    """The device of a rank that shares its machine with others: a GPU each in turn, 'auto' where there is none."""
    import torch

    env = os.environ if environment is None else environment
    place = int(env.get("LOCAL_RANK", env.get("SLURM_LOCALID", "0")))
    return f"cuda:{place % torch.cuda.device_count()}" if torch.cuda.is_available() else "auto"


def await_plan(dest: str | Path, *, seconds: float = 3600.0, every: float = 0.5) -> None:
    """Returns when rank 0 has planned the run at `dest`, or at once if it was planned before.

    The manifest is the last file of a plan, so it is enough to see it. Raises `IncompleteRun` after `seconds`.
    """
    end = time.monotonic() + seconds
    while not Manifest.path(dest).exists():
        if time.monotonic() > end:
            raise IncompleteRun(
                f"rank 0 has not planned a run at {str(dest)!r} in {seconds:g} s. Does it see the same folder? For inputs "
                "that take longer to list, plan in one process first: give the same command with --plan-only"
            )
        time.sleep(every)


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise BadArgument(f"{name}={env.get(name)!r} in the environment should be a whole number; start this process with "
                          "torchrun or srun, or choose --engine local") from error


# ------------------------------------------------------------------------------ Ray


def run_on_ray(
    dest: str | Path,
    units: Sequence[int],
    options: Mapping[str, Any],
    *,
    actors: int | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Computes units on a Ray cluster; what the sidecar of each says (unit, rows, failures), in order of completion.

    The cluster is the one that `ray.init()` finds (RAY_ADDRESS, a node started with `ray start`), else this machine.
    `options` are `UnitRunner`'s. Each of `actors` workers has `cpus` cores and `gpus` GPUs: one GPU and its share of the
    node's cores where the cluster has GPUs, else as many cores as the run has threads; `actors` is how many of them the
    cluster has room for. A worker that dies, with its node or alone, is replaced by Ray and its unit computed again.

    Raises `MissingExtra` without Ray, `BadArgument` if no node has room for a worker, `IncompleteRun` if units are missing
    although they were tried again and again.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayActorError
    except ImportError as error:
        raise MissingExtra("--engine ray needs the package 'ray': pip install 'ziggurat[ray]'") from error
    from .unit import sidecar_path

    dest = Path(dest).absolute()
    shutil.rmtree(_attempts(dest), ignore_errors=True)
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        lost: RayActorError | None = None
        for _ in range(PASSES):
            left = [unit for unit in units if not sidecar_path(dest, unit).exists()]
            if not left:
                return
            try:
                yield from _one_pass(dest, left, options, actors, cpus, gpus)
            except RayActorError as error:
                lost = error
        left = [unit for unit in units if not sidecar_path(dest, unit).exists()]
        if left:
            raise IncompleteRun(f"{len(left)} units are missing after {PASSES} passes, as unit {left[0]}; Ray's workers died "
                                "under them (of memory?); the same command goes on") from lost
    finally:
        if is_ours:
            ray.shutdown()


def _one_pass(
    dest: Path, units: Sequence[int], options: Mapping[str, Any], actors: int | None, cpus: int | None, gpus: float | None
) -> Iterator[dict[str, Any]]:
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its bars and notes would cross ours
    threads = Manifest.load(dest).threads
    gpus = _gpus(options) if gpus is None else gpus
    cpus = _cores(threads, gpus) if cpus is None else cpus
    if actors is None:
        actors = min(len(units), sum(_room(node, cpus, gpus) for node in _nodes()))
    if actors < 1:
        raise BadArgument(f"no node of the Ray cluster has room for a worker with {cpus} cores and {gpus:g} GPUs; give fewer "
                          "with engine_options={'cpus': ..., 'gpus': ...}")
    worker: Any = _Worker  # a class, which Ray Data makes an object of in each actor
    dataset = ray.data.from_items(list(units), override_num_blocks=len(units)).map(
        worker,
        fn_constructor_args=(str(dest),),
        fn_constructor_kwargs={**options, "workers": cpus if options.get("workers") is None else options["workers"]},
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        num_cpus=cpus,
        num_gpus=gpus or None,
    )
    dataset.context.enable_progress_bars = False
    for row in dataset.iter_rows():
        found = pickle.loads(row["found"])
        if isinstance(found, Exception):
            raise found
        yield found


class _Worker:
    """A `UnitRunner` as Ray Data calls it: {'item': unit} to what the unit's sidecar says, or the error, pickled.

    Errors are values, so that they reach the user as themselves. Ray calls again, without end, when a worker dies; here a
    unit that was committed before its report arrived is not computed twice, and one that ends each worker is given up.
    """

    def __init__(self, dest: str, **options: Any) -> None:
        self.dest, self.options = Path(dest), options
        self.runner: UnitRunner | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        try:
            found: Any = self._run(int(row["item"]))
        except (ZigguratError, OSError) as error:
            found = error
        return {"found": pickle.dumps(found)}

    def _run(self, unit: int) -> Any:
        from .unit import UnitRunner, sidecar

        if sidecar(self.dest, unit) is None:
            begun = _attempts(self.dest) / f"{unit:06d}"
            begun.parent.mkdir(parents=True, exist_ok=True)
            with begun.open("ab") as stream:
                stream.write(b".")
            if begun.stat().st_size > ATTEMPTS:
                raise IncompleteRun(f"unit {unit} ended its worker {ATTEMPTS} times, perhaps for want of memory; give workers "
                                    "more of it and the same command, or start over with a smaller --unit or --batch")
            self.runner = self.runner or UnitRunner(self.dest, **self.options)
            self.runner.run(unit)
            begun.unlink(missing_ok=True)
        return sidecar(self.dest, unit)


def _attempts(dest: Path) -> Path:
    """Where workers note the units that they begin, a byte an attempt."""
    return dest / ABOUT / "log" / "begun"


def _nodes() -> list[Mapping[str, float]]:
    """Resources ('CPU', 'GPU', ...) of each living node."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _gpus(options: Mapping[str, Any]) -> float:
    """GPUs a worker: one where the cluster has any, unless the CPU was asked for."""
    return 1.0 if options.get("device") != "cpu" and any(node.get("GPU") for node in _nodes()) else 0.0


def _cores(threads: int, gpus: float) -> int:
    """Cores a worker: a GPU's share of its node where there are GPUs, else one for each thread of the forward pass."""
    shares = [node.get("CPU", 0) * gpus // node["GPU"] for node in _nodes() if gpus and node.get("GPU")]
    return max(1, int(min(shares))) if shares else threads


def _room(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Workers that a node has room for."""
    by_cores = node.get("CPU", 0) // cpus
    return int(min(by_cores, node.get("GPU", 0) // gpus) if gpus else by_cores)
