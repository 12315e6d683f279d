"""Class balance of the samples of a dataset, and of the pixels of its masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.data.dataset import Dataset
from pipeline.data.label_column import without_samples
from pipeline.packing.scan import Scan

MOST_CLASSES = 20
"""Up to this many classes are listed; with more, only the extremes."""


class Balance:
    """Counts samples by class for each label, and pixels by value for each mask, in every split.

    Args:
        dataset: The dataset.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.samples = Counter[str]()
        self.counts = {split: {name: Counter[int]() for name in dataset.classes} for split in dataset.splits}

    def add(self, found: Scan) -> None:
        """Add the counts of a shard."""
        self.samples[found.job.split] += len(found.keys)
        for name, own in (*found.labels.items(), *found.pixels.items()):
            self.counts[found.job.split][name] += own

    def facts(self) -> Iterator[str]:
        """One line per split with the samples per class, and one line for each further label and each mask."""
        for split, counts in self.counts.items():
            total = self.samples[split]
            yield f"  {split}: {total} samples{self._samples('label', counts.get('label', Counter()), total)}"
            for name, own in counts.items():
                if name in self.dataset.masks and own:
                    yield f"  {split}, {name}: {self._pixels(name, own)}"
                elif name not in ("label", *self.dataset.masks):
                    yield f"  {split}, {name}{self._samples(name, own, total)}"

    def _samples(self, label: str, counts: Counter[int], total: int) -> str:
        names = self.dataset.classes.get(label, [])
        unlabelled = total - counts.total()
        text = _listed(names, [counts[number] for number in range(len(names))], "{}") if names else ""
        return (f", {unlabelled} unlabelled" if unlabelled > 0 else "") + (f": {text}" if names else "")

    def _pixels(self, mask: str, counts: Counter[int]) -> str:
        shares = [100 * counts[value] / counts.total() for value in self.dataset.masks[mask]]
        return f"{_listed(self.dataset.classes[mask], shares, '{:.3g} %')} of the pixels"

    def notes(self) -> Iterator[str]:
        """Classes that are missing in the training split or in a held-out one, and pixels without a class."""
        for name, names in self.dataset.classes.items():
            values = self.dataset.masks.get(name, range(len(names)))
            trained = self.counts.get("train", {}).get(name, Counter())
            for split, counts in self.counts.items():
                own = counts[name]
                absent = [n for n, value in zip(names, values, strict=True) if own[value] and not trained[value]]
                if split != "train" and trained and absent:
                    what = "classes" if name == "label" else f"classes of {name}"
                    yield f"{split} has {what} without samples in train: {', '.join(absent[:10])}"
        yield from self._untested()
        for mask, values in self.dataset.masks.items():
            pixels = sum((counts[mask] for counts in self.counts.values()), Counter[int]())
            if strange := sorted(pixels.keys() - set(values)):
                share = 100 * sum(pixels[value] for value in strange) / pixels.total()
                yield (
                    f"{share:.3g} % of the pixels of {mask} have no class and are ignored: they have the values "
                    f"{', '.join(map(str, strange[:10]))}; the classes have {', '.join(map(str, values[:10]))}"
                )

    def _untested(self) -> Iterator[str]:
        """Classes that occur, but not in a held-out split with labels."""
        for name in sorted(self.dataset.classes.keys() - self.dataset.masks.keys()):
            every = sum((counts[name] for counts in self.counts.values()), Counter[int]())
            for split, counts in self.counts.items():
                absent = [self.dataset.classes[name][n] for n in sorted(every) if not counts[name][n]]
                if split != "train" and counts[name] and absent:
                    yield without_samples(name, split, absent)


def _listed(names: Sequence[str], amounts: Sequence[float], form: str) -> str:
    """Each class with its amount; with many classes, only the smallest and the largest amount."""
    if len(names) > MOST_CLASSES:
        return f"{form.format(min(amounts))} to {form.format(max(amounts))} in each of {len(names)} classes"
    return ", ".join(f"{name} {form.format(amount)}" for name, amount in zip(names, amounts, strict=True))
