"""What a file can hold; imports nothing, so that the command line may ask."""

#: Bytes of weights in one ONNX file: a protobuf message ends at 2 GiB, with room for the graph beside the weights.
LARGEST_MODEL = 2**31 - 2**24
