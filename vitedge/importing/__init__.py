"""Import: a published checkpoint, an ONNX file from anyone or the embedded model becomes a canonical ``model/`` folder.

Whatever comes in is compared with its source on pictures before anything is written: a checkpoint with a float64
forward pass in numpy, an ONNX file with itself as it was. Foreign ONNX files are parsed and run in a child process.
"""

from vitedge.importing.entry import import_model, summary
from vitedge.importing.labels import read_labels
from vitedge.importing.options import preprocessing_options
from vitedge.importing.proof import PICTURES, TOLERANCE

__all__ = ["PICTURES", "TOLERANCE", "import_model", "preprocessing_options", "read_labels", "summary"]
