"""Cross-modal knowledge distillation: train a small model of one modality from a teacher of another.

Names are imported on first use, so that `import wcord` is fast and does not import torch.

Example:
    >>> import wcord
    >>> run = wcord.train(wcord.config.load("rgb_to_depth", ["data.shards=data/mine", "teacher.run=runs/teacher"]))
    >>> wcord.evaluate(run)["student/top1"]
    >>> wcord.load(run).predict("recordings/depth")
"""

TYPE_CHECKING = False  # not from typing, which `python -m` would search in the working folder first
if TYPE_CHECKING:
    import losses as losses
    import modalities as modalities
    from modalities.encoders.module import wrap as wrap
    from pipeline import config as config
    from pipeline import load as load
    from pipeline.common.errors import UserError as UserError
    from pipeline.data.paired_stream import stream as stream
    from pipeline.evaluate import evaluate as evaluate
    from pipeline.train import train as train
    from pipeline.train.callbacks import Callback as Callback
    from pipeline.train.distill import distill as distill

    __version__: str

_NAMES = {
    "Callback": "pipeline.train.callbacks:Callback",
    "UserError": "pipeline.common.errors:UserError",
    "config": "pipeline.config",
    "distill": "pipeline.train.distill:distill",
    "evaluate": "pipeline.evaluate:evaluate",
    "load": "pipeline:load",
    "losses": "losses",
    "modalities": "modalities",
    "stream": "pipeline.data.paired_stream:stream",
    "train": "pipeline.train:train",
    "wrap": "modalities.encoders.module:wrap",
}
"""Public name -> its module, or `module:name`."""

__all__ = [
    "Callback",
    "UserError",
    "__version__",
    "config",
    "distill",
    "evaluate",
    "load",
    "losses",
    "modalities",
    "stream",
    "train",
    "wrap",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("wcord")
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    import_module("pipeline")  # first, since it sets options that torch reads only once
    module, _, attribute = _NAMES[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
