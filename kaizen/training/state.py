"""The state of one task: what is trained, follows or remembers; how it is initialised, saved and restored.

A task always begins from files (the task-end state of the task before), whether the run continues or is resumed.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kaizen.config.schema import Config
from kaizen.data.load import decoding_of
from kaizen.data.replay import Memory
from kaizen.errors import TrainingFailed
from kaizen.model.distillers import build_distiller
from kaizen.model.growth import grown
from kaizen.model.learner import Learner, Network, last_layer
from kaizen.model.pretrained import load_pretrained
from kaizen.model.teacher import MomentumTwin, Teacher
from kaizen.parallel import Parallel, full_tensors
from kaizen.run.checkpoint import write_directory
from kaizen.run.places import task_directory
from kaizen.run.tensors import cpu_copies, load_into, load_optimizer, optimizer_tensors, read_tensors
from kaizen.training.optim import build_optimizer, parameter_groups

Files = dict[str, dict[str, Tensor]]
"""Tensors of files by the files' names without suffix."""
Position = dict[str, Any]
STUDENT = ("encoder.", "projector.", "classifier.", "distill_predictor.")


def read_memory(path: Path, image: tuple[int, int, int], config: Config, classes: int, parallel: Parallel) -> Memory:
    """The replay memory of a task-end directory, mapped from its file, which the processes of a node share.

    Raises:
        ConfigError: the file is missing or damaged.
        TrainingFailed: names processes whose memory differs from the main process'.
    """
    parallel.await_file(path / "replay.safetensors")
    logits = config.classifier.distill == "stored_logits"
    decoding = decoding_of(config, image[-1])
    memory = Memory.read(path / "replay.safetensors", image, classes, logits=logits, decoding=decoding)
    parallel.agree(f"the replay memory {path}", memory.digest)
    return memory


class TaskState:
    """Student, optimizer, twin, teacher and replay memory of a task.

    Args:
        images: training images of the task.
        class_names: names of the classes, from which those that the task before did not know get their first outputs.
        weights: weights of the four terms; without a weight on the old classifier, without a distiller and with a
            method that needs none there is no teacher. Stored logits need none.
    """

    def __init__(
        self,
        config: Config,
        num_classes: int,
        task: int,
        images: int,
        lr: float,
        weights: dict[str, float],
        run: Path,
        parallel: Parallel,
        class_names: Sequence[str] = (),
    ) -> None:
        self.config, self.num_classes, self.task, self.parallel = config, num_classes, task, parallel
        self.class_names = class_names
        self.weights = weights
        distiller = build_distiller(config.distill) if task else None
        self.learner = parallel.placed(Learner(config, num_classes, distiller)).train()
        self.learner.method.begin_task(images)
        if not task:
            load_pretrained(self.learner.encoder, config, run)
        self.twin = MomentumTwin(self.learner) if self.learner.method.twin_views else None
        before = task_directory(run, task - 1) if task else None
        if before:
            parallel.await_file(before / "student.safetensors")
            self._load(before, self._kept())
            if task == 1:
                self.learner.method.continue_from(self.learner.projector)
        self.teacher = None
        soft = config.classifier.distill == "soft_label"
        needed = distiller is not None or self.learner.method.needs_teacher()
        if before and (needed or (soft and weights["classifier_distill"] > 0)):
            # At a task's beginning the method's prototypes are those that the teacher ended with.
            prototypes = self.learner.method.prototypes().clone() if self.learner.method.has_prototypes else None
            self.teacher = Teacher(before / "student.safetensors", config, num_classes, parallel, prototypes)
        constant = tuple(f"method.{name}" for name in self.learner.method.constant_rate)
        rates = (lr, config.optim.classifier_lr, config.optim.weight_decay)
        plain = tuple(f"encoder.{name}" for name in self.learner.encoder.plain)

        def build() -> torch.optim.Optimizer:
            groups = parameter_groups(self.learner, *rates, constant, plain, exclude_1d=config.optim.exclude_1d)
            momentum, eta = config.optim.momentum, config.optim.eta
            return build_optimizer(config.optim.name, groups, momentum, eta, lr, fused=parallel.fuses)

        networks: list[nn.Module] = [self.learner]
        networks += [self.twin] if self.twin is not None else []
        networks += [self.teacher.network] if self.teacher is not None else []
        for network in networks:
            parallel.compiler.compile(network, self.learner.encoder.block_names)
        self.wrapped, self.optimizer = parallel.prepare(self.learner, build, self.learner.encoder.block_names)
        if self.twin is not None:
            parallel.spread(self.twin, self.learner.encoder.block_names)
            self.twin.follow(self.learner)
        self.before = before

    @property
    def stores_logits(self) -> bool:
        """Whether the memory holds logits of its images."""
        return self.config.classifier.distill == "stored_logits"

    def memory(self, image: tuple[int, int, int]) -> Memory:
        """The replay memory that the task before left; before task 0 an empty one for such images (c, h, w)."""
        if self.before is None:
            logits = self.num_classes if self.stores_logits else None
            return Memory.empty(*image[:2], logits, decoding_of(self.config, image[-1]))
        return read_memory(self.before, image, self.config, self.num_classes, self.parallel)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Files of a snapshot: the student, and everything else the next task starts from.

        All processes call this; under FSDP2 only the main one gets the full tensors.
        """
        own = self.parallel.gathered(self.learner.state_dict())
        student = {name: t for name, t in own.items() if name.startswith(STUDENT)}
        method = {name: t for name, t in own.items() if name.startswith("method.")}
        if self.twin is not None:
            method |= {f"twin.{name}": t for name, t in self.parallel.gathered(self.twin.state_dict()).items()}
        return {"student": student, "method": method}

    def checkpoint(self, path: Path, position: dict[str, Any]) -> Callable[[], None]:
        """Copy this step's state to the CPU; all processes call this, one calls the function returned, which writes it.

        That function raises a TrainingFailed if something in the state is not finite.
        """
        optimizer = optimizer_tensors(self.optimizer, self.learner)
        files = self.tensors() | {"optimizer": self.parallel.gathered(optimizer)}
        held: dict[str, dict[str, Tensor]] = {}
        self.parallel.on_main(lambda: held.update(cpu_copies(files)))

        def write() -> None:
            _check_finite(held, position)
            write_directory(path, held, position)

        return write

    def save_task_end(
        self,
        path: Path,
        more: Callable[[Mapping[str, Tensor]], Files],
        image: tuple[int, int, int],
        position: Callable[[], Position],
    ) -> None:
        """Write the state at the task's end; all processes call this.

        Args:
            more: makes the other files, and those that replace the state's, from the student's tensors, on one process.
            image: shape (c, h, w) of the memory's images.
            position: for state.json; called on one process when everything else is done, so that it counts the seconds.
        """
        files, kept = self.tensors(), self._kept()
        files["method"] = {name: t for name, t in files["method"].items() if name in kept or name.startswith("twin.")}

        def write() -> None:
            _check_finite(files, position())
            made = more(files["student"])
            _check_finite(made, position())
            write_directory(path, files | made, position())

        self.parallel.on_main(write)
        read_memory(path, image, self.config, self.num_classes, self.parallel)

    def copied(self, *parts: str) -> nn.ModuleDict:
        """Copies of parts of the student (encoder, projector, classifier), whole, for use outside of steps."""
        if not self.parallel.sharded:
            return nn.ModuleDict({name: copy.deepcopy(self.learner.get_submodule(name)) for name in parts})
        network = self.parallel.placed(Network(self.config, self.num_classes))
        names = network.state_dict().keys()
        network.load_state_dict(full_tensors({n: t for n, t in self.learner.state_dict().items() if n in names}))
        return nn.ModuleDict({name: network.get_submodule(name) for name in parts})

    def restore(self, path: Path) -> None:
        """Restore a checkpoint of this task.

        Raises:
            ConfigError: its tensors do not fit.
        """
        file = path / "optimizer.safetensors"
        self.parallel.await_file(file)
        self._load(path, tuple(name for name in self.learner.state_dict() if name.startswith("method.")))
        load_optimizer(self.optimizer, self.learner, read_tensors(file), file)

    def _kept(self) -> tuple[str, ...]:
        """Names of the method's state that outlives a task."""
        gone = tuple(f"method.{name}" for name in self.learner.method.of_one_task)
        own = [name for name in self.learner.state_dict() if name.startswith("method.")]
        return tuple(name for name in own if not (gone and name.startswith(gone)))

    def _load(self, path: Path, names: tuple[str, ...]) -> None:
        """Load student, twin and the method's state of these names from a directory."""
        student, method = (read_tensors(path / f"{file}.safetensors") for file in ("student", "method"))
        heads = (last_layer(self.config), *(f"method.{name}" for name in self.learner.method.class_heads))
        for tensors in (student, method):
            tensors.update(grown(tensors, heads, self.class_names, self.config.run.seed))
        # At task 1 the distillation predictor is new: the snapshot of task 0 has none, so it keeps its initial values.
        held = tuple(part for part in STUDENT if any(name.startswith(part) for name in student))
        load_into(self.learner, student, held, path / "student.safetensors")
        own = {name: t for name, t in method.items() if name.startswith("method.")}
        load_into(self.learner, own, names, path / "method.safetensors")
        if self.twin is not None:
            tensors = {name.removeprefix("twin."): t for name, t in method.items() if name.startswith("twin.")}
            load_into(self.twin, tensors, ("",), path / "method.safetensors")


def _check_finite(files: dict[str, dict[str, Tensor]], position: dict[str, Any]) -> None:
    """Refuse to save a state that is not finite, although the losses still were."""
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                where = f"task {position['task']}, step {position['step']}"
                raise TrainingFailed(f"{where}: {name} ({file}) is not finite; the last checkpoint is kept")
