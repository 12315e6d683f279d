from losses.base import Batch, Dims, Features, Loss

__all__ = ["Batch", "Dims", "Features", "Loss"]
