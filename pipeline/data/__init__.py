"""Local and remote datasets: manifests, shards, streams, decoding, augmentation, join, cached features."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import hand_on

if TYPE_CHECKING:
    from pipeline.data.augmentation import Augmentation as Augmentation
    from pipeline.data.dataset import Dataset as Dataset
    from pipeline.data.manifest import load_dataset as load_dataset
    from pipeline.data.source import Policy as Policy
    from pipeline.data.source import open_split as open_split
    from pipeline.data.stream import EvalStream as EvalStream
    from pipeline.data.stream import TrainStream as TrainStream
    from pipeline.data.stream import loader as loader
    from pipeline.data.views import Batch as Batch
    from pipeline.data.views import View as View

__getattr__ = hand_on(
    __name__,
    {
        "Augmentation": "augmentation",
        "Dataset": "dataset",
        "load_dataset": "manifest",
        "Policy": "source",
        "open_split": "source",
        "EvalStream": "stream",
        "TrainStream": "stream",
        "loader": "stream",
        "Batch": "views",
        "View": "views",
    },
)
