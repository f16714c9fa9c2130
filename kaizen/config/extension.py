"""What `kaizen extend` adds to a run: the sections that a later part of the stream has of its own."""

from kaizen.config.data import DataConfig, LabelsConfig, StreamConfig
from kaizen.config.memory import ReplayConfig
from kaizen.config.optim import OptimConfig
from kaizen.config.types import Section


class Extension(Section):
    """Sections that replace the run's own for the tasks of one extension; all others stay as they are."""

    data: DataConfig
    stream: StreamConfig
    labels: LabelsConfig = LabelsConfig()
    replay: ReplayConfig = ReplayConfig()
    optim: OptimConfig = OptimConfig()
