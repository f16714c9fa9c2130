"""What `kaizen extend` adds to a run: the sections that a later part of the stream has of its own."""

from pydantic import field_validator

from kaizen.config.data import DataConfig, LabelsConfig, StreamConfig
from kaizen.config.memory import ReplayConfig
from kaizen.config.optim import OptimConfig
from kaizen.config.types import AUTO, Section


class Extension(Section):
    """Sections that replace the run's own for the tasks of one extension; all others stay as they are."""

    data: DataConfig
    """With the run's data.store, as the memory holds images of all parts of the stream."""
    stream: StreamConfig
    labels: LabelsConfig = LabelsConfig()
    replay: ReplayConfig = ReplayConfig()
    optim: OptimConfig = OptimConfig()

    @field_validator("data")
    @classmethod
    def _with_store(cls, data: DataConfig) -> DataConfig:
        """Runs that were extended before images could stay encoded have pixels."""
        return data if data.store != AUTO else data.model_copy(update={"store": "pixels"})
