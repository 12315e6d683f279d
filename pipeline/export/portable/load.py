"""python load.py FILE …: features and labels in plain PyTorch. Requires torch and the dependencies of preprocess.py."""

import sys
from pathlib import Path

import torch
from files import inputs_of

network = torch.export.load(Path(__file__).parent / "model.pt2").module()  # on the CPU, for inference
for path, inputs in inputs_of(sys.argv[1:]):
    features, *logits = network(*(torch.from_numpy(value) for value in inputs.values()))
    print(path, features.shape, *(value.argmax(1).tolist() for value in logits))
