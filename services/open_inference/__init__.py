"""The Open Inference Protocol v2: its tensors, what it says of models, and inference by it. Transport-free."""
