"""A model for others: on the Hub, and as ONNX."""
