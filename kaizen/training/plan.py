"""Numbers derived from the configuration, computed once and printed: steps, rates, batches."""

from collections.abc import Sequence
from dataclasses import dataclass

from kaizen.config.encoder import TIMM
from kaizen.config.optim import OptimConfig
from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.data.chapters import Chapters
from kaizen.data.replay import AUTO_LEAST
from kaizen.data.stream import Task
from kaizen.errors import ConfigError
from kaizen.model.methods import method_class
from kaizen.plugins import short
from kaizen.training.optim import warmup_cosine

WARMUP_START = 0.003  # Warm-up starts at this rate, or at the base rate if that is lower

STEEP_RATE, SAFE_WARMUP = 0.1, 100
"""A classifier with hidden layers may die under LARS at this rate of its own, or a higher one, after fewer steps of
warm-up than the second number: its hidden units switch off, and it gives one class for every image."""


@dataclass(frozen=True)
class TaskPlan:
    """Steps of one task; each epoch drops the images that do not fill a batch, and optim.images may cut the last."""

    images: int
    batch: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    first_step: int
    """Number of steps of the run before this task."""
    lr: float
    """Base rate, scaled by the configured batch / 256."""
    min_lr: float

    @property
    def epochs(self) -> int:
        """Number of epochs, of which the last may be cut."""
        return -(-self.steps // self.steps_per_epoch)


@dataclass(frozen=True)
class Plan:
    """The run in numbers."""

    tasks: tuple[TaskPlan, ...]

    @property
    def lr(self) -> float:
        """Scaled base rate of the first task."""
        return self.tasks[0].lr

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return sum(task.steps for task in self.tasks)

    def rate(self, task: int, step: int, base: float) -> float:
        """Learning rate of a group with that base rate at a step of the task."""
        plan, start = self.tasks[task], min(WARMUP_START, base)
        return warmup_cosine(step, plan.steps, plan.warmup_steps, base, start, min(plan.min_lr, base))


def task_steps(optim: OptimConfig, batch: int, steps_per_epoch: int) -> int:
    """Steps of a task with this batch: those of optim.epochs, or as many as optim.images fill.

    Raises:
        ConfigError: these images fill no step.
    """
    if optim.images is None:
        return steps_per_epoch * optim.epochs
    if optim.images < batch:
        problem = f"is {optim.images}; allowed: at least {batch}, the images of one step, or a smaller optim.batch"
        raise ConfigError("optim.images", problem)
    return optim.images // batch


def make_plan(config: Config, images: Sequence[int], world: int, accumulation: int = 1, first: int = 0) -> Plan:
    """Steps and rates for tasks with these numbers of training images, on `world` processes.

    Args:
        accumulation: number of parts of a global batch.
        first: number of steps of the run before these tasks.

    Raises:
        ConfigError: a process has no image of the task in some step, or a task does not fit the method or its steps.
    """
    tasks, lr = [], config.optim.lr * config.optim.batch / 256
    for count in images:
        batch = min(config.optim.batch, count)
        least = max(2, world) * accumulation  # a single image has no statistics
        if batch < least:
            found = (
                f"is {config.optim.batch}" if batch == config.optim.batch else f"is cut to {batch} by the smallest task"
            )
            why = f"an image for each of {world} processes" if world > 1 else "two images"
            why += f" in each of {accumulation} parts (gradient accumulation)" if accumulation > 1 else ""
            raise ConfigError("optim.batch", f"{found}; allowed: at least {least}, {why}")
        method_class(config.method.name).check_task(config.method, count, batch // accumulation)
        per_epoch = count // batch
        steps = task_steps(config.optim, batch, per_epoch)
        warmup = min(per_epoch * config.optim.warmup_epochs, steps)
        # A warm-up of one step has no slope; it is left out.
        warmup = warmup if warmup >= 2 else 0
        tasks.append(TaskPlan(count, batch, per_epoch, steps, warmup, first, lr, config.optim.min_lr))
        first += steps
    return Plan(tuple(tasks))


def plan_chapters(chapters: Chapters, world: int, accumulation: int = 1) -> Plan:
    """The plan of all chapters of a run, each by its own configuration."""
    tasks: list[TaskPlan] = []
    for part in chapters.parts:
        images = [task.train_images for task in part.record.tasks]
        first = sum(task.steps for task in tasks)
        tasks += make_plan(part.config, images, world, accumulation, first).tasks
    return Plan(tuple(tasks))


def term_weights(config: Config, tasks: Sequence[Task], task: int) -> dict[str, float]:
    """Weights of the four terms of the loss in a task."""
    weight = config.classifier.distill_weight
    if weight == "class_ratio":
        before = {c for earlier in tasks[:task] for c in earlier.classes}
        weight = len(before) / len(set(tasks[task].classes) - before)
    return {
        "ssl": config.method.weight,
        "distill": config.distill.weight or 0.0,
        "classifier": config.classifier.weight,
        "classifier_distill": float(weight),
    }


def _duration(optim: OptimConfig, plan: Plan) -> str:
    """The length of every task in words."""
    if optim.images is None and len({task.epochs for task in plan.tasks}) > 1:
        return f"{', '.join(str(task.epochs) for task in plan.tasks)} epochs"
    if optim.images is None:
        return f"{optim.epochs} epoch{'s' * (optim.epochs > 1)} per task"
    passes = sorted({task.steps / task.steps_per_epoch for task in plan.tasks})
    between = " to ".join(f"{number:.3g}" for number in dict.fromkeys((passes[0], passes[-1])))
    return f"{optim.images} images, {between} epochs per task"


def cautions(config: Config, plan: Plan) -> list[str]:
    """Lines for the user where the classifier may die (see STEEP_RATE), or where a warm-up or a freeze is no help."""
    lines, fewest = _dying(config, plan), min(plan.tasks, key=lambda task: task.epochs)
    if config.encoder.freeze and config.encoder.weights is None:
        kept = f"encoder.freeze {config.encoder.freeze} keeps random weights, as encoder.weights is null"
        lines.append(f"caution             {kept}")
    cut = [task for task in plan.tasks if task.warmup_steps == task.steps]
    if cut and config.optim.images is not None:
        lines.append(
            f"caution             optim.warmup_epochs {config.optim.warmup_epochs} takes all {cut[0].steps} steps of a "
            f"task with optim.images {config.optim.images}: the rate never falls; safer: a smaller number"
        )
    if (frozen := getattr(config.method, "freeze_epochs", 0)) >= fewest.epochs:
        lines.append(
            f"caution             method.freeze_epochs {frozen}: a task of {fewest.epochs} epoch"
            f"{'s' * (fewest.epochs > 1)} ends before {config.method.name} trains what it freezes; safer: 0"
        )
    return lines


def _dying(config: Config, plan: Plan) -> list[str]:
    optim, shortest = config.optim, min(plan.tasks, key=lambda task: task.warmup_steps)
    risky = optim.name == "lars" and config.classifier.hidden and config.classifier.weight > 0
    if not risky or optim.classifier_lr < STEEP_RATE or shortest.warmup_steps >= SAFE_WARMUP:
        return []
    epochs = -(-SAFE_WARMUP // shortest.steps_per_epoch)
    return [
        f"caution             optim.classifier_lr {optim.classifier_lr:g} after {shortest.warmup_steps} steps of "
        f"warm-up: a classifier with hidden layers may end with one class for all images; safer: less than "
        f"{STEEP_RATE:g}, or {SAFE_WARMUP} steps (optim.warmup_epochs {epochs})"
    ]


def describe(config: Config, plan: Plan, world: int, accumulation: int = 1) -> list[str]:
    """The derived numbers as lines for the user."""
    optim, replay = config.optim, config.replay
    images = [task.images for task in plan.tasks]
    smallest = min(task.batch for task in plan.tasks)
    cut = f", cut to {smallest} by the smallest task" if smallest < optim.batch else ""
    parts = f"{accumulation} part{'' if accumulation == 1 else 's'} per step"
    per_epoch = [task.steps_per_epoch for task in plan.tasks]
    memory = "none"
    if replay.policy != "none":
        kind, size = config.replay_budget()
        budget = f"{size:.0%} of each class, at least {AUTO_LEAST} images" if kind == AUTO else f"{kind} {size:g}"
        drawn = f"{replay.batch} images per step"
        if replay.mix == "lump":
            drawn = f"one mixed into each new image, Beta({replay.mix_alpha:g}); replay.batch is not used"
        memory = f"{short(replay.policy)}, {budget}, {drawn}"
    held = config.statistics
    kept = f"the mean of each class's features and one covariance, map held to the identity by {held.ridge:g}"
    encoder, grid, weights = short(config.encoder.name), "", ""
    if config.encoder.weights is not None:
        weights = f", weights of {config.encoder.weights}"
    elif config.encoder.name.startswith(TIMM):
        weights = ", random weights (encoder.weights auto: those that timm publishes)"
    if (patch := config.encoder.patch) and (side := config.data.image_size):
        grid = f", {(side // patch) ** 2} patches of {patch} x {patch} pixels per image"
    return [
        f"encoder             {encoder}{grid}{weights}",
        f"processes           {world}",
        f"global batch        {optim.batch} images per step, {-(-optim.batch // world)} per process{cut}",
        f"accumulation        {parts}",
        f"replay              {memory}",
        f"statistics          {kept if held.keep else 'none'}",
        f"tasks               {len(images)}, training images {', '.join(map(str, images))}",
        f"steps per epoch     {', '.join(map(str, per_epoch))}; {_duration(optim, plan)}",
        f"steps               {plan.steps}",
        f"learning rate       {plan.lr:g} = {optim.lr:g} x {optim.batch} / 256; classifier {optim.classifier_lr:g}; "
        f"{optim.name}, warm-up {plan.tasks[0].warmup_steps} steps",
        f"losses              {short(config.method.name)} x {config.method.weight:g}, distiller "
        f"{short(config.distill.name)} x "
        f"{config.distill.weight:g}, classifier x {config.classifier.weight:g}, "
        f"{'stored logits' if config.classifier.distill == 'stored_logits' else 'old classifier'} x "
        f"{config.classifier.distill_weight}",
        *cautions(config, plan),
    ]
