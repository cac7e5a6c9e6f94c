"""The contract as bytes: the Open Inference Protocol v2 with binary tensors. The only room that knows the byte layout."""
