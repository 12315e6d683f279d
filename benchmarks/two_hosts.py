"""Simulates two hosts with network namespaces: a run on both, a run whose link is cut, and its resumption.

python -m benchmarks.two_hosts (Linux, as root)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import torch

from benchmarks.kill_and_resume import FOLDER, prepare, weights

HOSTS = {"wcord-a": "10.77.0.1", "wcord-b": "10.77.0.2"}
TIMEOUT, CUT_AT = 15, 80


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def network() -> Iterator[None]:
    """Two namespaces, connected by a virtual cable."""
    first, second = HOSTS
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False)


class Host:
    """`accelerate launch` on one of the hosts; `output` contains everything that it has printed so far."""

    def __init__(self, rank: int, path: Path, name: str, *flags: str) -> None:
        launch = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
        where = ["--machine_rank", str(rank), "--main_process_ip", HOSTS["wcord-a"], "--main_process_port", "29577"]
        plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
        job = ["-m", "pipeline", "train", str(path), f"run={FOLDER}/{name}", f"train.timeout={TIMEOUT}", *flags]
        environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", list(HOSTS)[rank], sys.executable, "-m", *launch, *where, *plain, *job],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line


def both(path: Path, name: str, *flags: str) -> list[Host]:
    return [Host(rank, path, name, *flags) for rank in (0, 1)]


def finish(hosts: list[Host]) -> None:
    if any(host.process.wait(300) for host in hosts):
        raise SystemExit("\n".join(host.output[-3000:] for host in hosts))


def main() -> None:
    path = prepare()
    with network():
        finish(both(path, "whole"))
        print("two hosts trained together", flush=True)
        hosts = both(path, "cut")
        while f"step {CUT_AT}/" not in hosts[0].output:
            time.sleep(0.05)
        ip("-n", "wcord-a", "link", "set", "cable", "down")
        cut = time.perf_counter()
        codes = [host.process.wait(300) for host in hosts]
        took = time.perf_counter() - cut
        reasons = [
            next((line for line in h.output.splitlines() if "imed out" in line or "onnection" in line), "")
            for h in hosts
        ]
        print(f"cable cut at step {CUT_AT}: both ended {took:.0f} s later (train.timeout: {TIMEOUT} s), codes {codes}")
        for host, reason in zip(HOSTS, reasons, strict=True):
            print(f"  {host}: {reason.strip()[:200]}")
        ip("-n", "wcord-a", "link", "set", "cable", "up")
        finish(both(path, "cut", "--resume"))
    whole, resumed = weights("whole"), weights("cut")
    same = all(torch.equal(whole[key], resumed[key]) for key in whole)
    print(f"resumed: weights {'bit-identical' if same else 'DIFFER'}")
    sys.exit(not (same and all(codes)))


if __name__ == "__main__":
    main()
