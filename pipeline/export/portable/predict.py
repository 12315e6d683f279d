"""python predict.py FILE …: labels with ONNX Runtime. Requires onnxruntime and the dependencies of preprocess.py."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from files import inputs_of

HERE = Path(__file__).parent
CLASSES = json.loads((HERE / "preprocessing.json").read_text())["classes"]

# For int8, use model.int8.onnx.
session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
for path, inputs in inputs_of(sys.argv[1:]):
    features, *logits = session.run(None, inputs)
    if logits:
        odds = np.exp(logits[0][0] - logits[0][0].max())
        print(f"{path}\t{CLASSES[odds.argmax()]}\t{odds.max() / odds.sum():.4f}")
    else:
        print(f"{path}\t{features.shape[1]} features, norm {np.linalg.norm(features):.3f}")
