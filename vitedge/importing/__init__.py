"""A checkpoint, a torch module or an ONNX file in; a model folder, compared with its source, out.

Whatever comes in is compared with its source on pictures before anything is written: a checkpoint with a float64
forward pass in numpy, a torch module and an ONNX file with themselves. The user's code and foreign ONNX files run in
child processes.
"""

from vitedge.importing.entry import import_model, summary
from vitedge.importing.factory import chosen_source
from vitedge.importing.labels import read_labels
from vitedge.importing.options import preprocessing_options
from vitedge.importing.proof import PICTURES, TOLERANCE
from vitedge.training.factory import Factory

__all__ = [
    "PICTURES",
    "TOLERANCE",
    "Factory",
    "chosen_source",
    "import_model",
    "preprocessing_options",
    "read_labels",
    "summary",
]
