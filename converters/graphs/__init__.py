"""ONNX graphs: cleaning, folding, and files of other exporters."""
