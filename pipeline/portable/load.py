"""python load.py FILE …: features and logits in plain PyTorch. Needs torch and what preprocess.py needs."""

import sys
from pathlib import Path

import torch
from preprocess import batch, read

network = torch.export.load(Path(__file__).parent / "model.pt2").module()  # on the CPU, for inference
failed = False
for path in sys.argv[1:]:
    try:
        inputs = batch([read(Path(path).read_bytes())])
    except (OSError, ValueError) as error:  # the others are not lost for it
        failed = True
        print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        continue
    features, *logits = network(*(torch.from_numpy(value) for value in inputs.values()))
    print(path, features.shape, *(value.argmax(1).tolist() for value in logits))
sys.exit(failed)
