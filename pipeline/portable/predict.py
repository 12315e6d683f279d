"""python predict.py FILE …: labels by ONNX Runtime. Needs onnxruntime and what preprocess.py needs."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from preprocess import ABOUT, batch, read

# model.int8.onnx is the same in 8 bits.
session = onnxruntime.InferenceSession(str(Path(__file__).parent / "model.onnx"), providers=["CPUExecutionProvider"])
failed = False
for path in sys.argv[1:]:
    try:
        inputs = batch([read(Path(path).read_bytes())])
    except (OSError, ValueError) as error:  # the others are not lost for it
        failed = True
        print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        continue
    features, *logits = session.run(None, inputs)
    if logits:
        odds = np.exp(logits[0][0] - logits[0][0].max())
        print(f"{path}\t{ABOUT['classes'][odds.argmax()]}\t{odds.max() / odds.sum():.3f}")
    else:
        print(f"{path}\t{features.shape[1]} features, norm {np.linalg.norm(features):.3f}")
sys.exit(failed)
