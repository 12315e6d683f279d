"""Small and diverse settings in which the defaults must work: `python -m benchmarks.suite --data FOLDER`.

FOLDER contains hand_gestures_rgbd, seven_scenes_rgbd, sign_digits, spoken_digits, emoji and cifar10_jpg. Settings
without data are skipped with a message. Each setting is a YAML file in benchmarks/suite/settings; the methods are in
methods.yaml. Finished students are kept: to resume, run the same command again. At the end, it prints the tables of
`docs/results.md`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml

from benchmarks.suite.jobs import fitting, run, teach
from benchmarks.suite.regret import print_tables
from benchmarks.suite.settings import FOLDER, Losses, Setting, load_settings
from benchmarks.suite.tables import TABLES

CORES = os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets")
    parser.add_argument("--out", type=Path, default=Path("runs/suite"))
    parser.add_argument("--settings", nargs="+", default=[], help="settings to run; default: all")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder with the YAML files of the settings")
    parser.add_argument("--forms", action="store_true", help="also train the variants that the default was chosen from")
    parser.add_argument("--methods", nargs="+", default=[], help="only these methods")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=CORES)
    options = parser.parse_args(arguments)
    data, out = options.data.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    settings = load_settings(options.settings, options.folder)
    for name in [name for name, setting in settings.items() if not there(setting, data, out)]:
        print(f"{name}: skipped, its data is not in {data}")
        del settings[name]
    kinds = yaml.safe_load((Path(__file__).parent / "methods.yaml").read_text())
    methods: dict[str, Losses] = kinds["rivals"] | kinds["ours"] | (kinds["forms"] if options.forms else {})
    if unknown := set(options.methods) - set(methods):
        parser.error(f"--methods: unknown: {', '.join(sorted(unknown))}; choose from: {', '.join(methods)}")
    methods = {name: methods[name] for name in options.methods or methods}
    context = get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context, max_tasks_per_child=1) as pool:
        teachers = {setting.whole(out / name): (setting, data, out / name) for name, setting in settings.items()}
        wait([pool.submit(teach, *teacher) for teacher in teachers.values()])
        wait([pool.submit(setting.pack, data, out / name) for name, setting in settings.items()])
        jobs = [(name, seed) for seed in range(options.seeds) for name in settings]
        wait([pool.submit(run, settings[name], out / name, fitting(settings[name], methods), s) for name, s in jobs])
    print_tables(settings, out, options.seeds, kinds)


def there(setting: Setting, data: Path, out: Path) -> bool:
    """Whether the files of a setting exist."""
    try:
        return bool(TABLES[setting.table](data, out)) if setting.table in TABLES else Path(setting.table).exists()
    except FileNotFoundError:
        return False


def wait(jobs: Sequence[Future[None]]) -> None:
    """Wait for all jobs, then raise the first error; finished work is kept."""
    for job in jobs:
        job.result()


if __name__ == "__main__":
    main()
