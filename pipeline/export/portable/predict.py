"""python predict.py FILE …: labels with ONNX Runtime. Requires onnxruntime and the dependencies of preprocess.py."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from files import inputs_of
from preprocess import ABOUT

# For int8, use model.int8.onnx.
session = onnxruntime.InferenceSession(str(Path(__file__).parent / "model.onnx"), providers=["CPUExecutionProvider"])
for path, inputs in inputs_of(sys.argv[1:]):
    features, *logits = session.run(None, inputs)
    if logits:
        odds = np.exp(logits[0][0] - logits[0][0].max())
        print(f"{path}\t{ABOUT['classes'][odds.argmax()]}\t{odds.max() / odds.sum():.3f}")
    else:
        print(f"{path}\t{features.shape[1]} features, norm {np.linalg.norm(features):.3f}")
