"""A checkpoint, a torch module or an ONNX file in; a model folder, compared with its source, out.

Whatever comes in is compared with its source on pictures before anything is written: a checkpoint with a float64
forward pass in numpy, a torch module and an ONNX file with themselves. The user's code and foreign ONNX files run in
child processes.
"""
