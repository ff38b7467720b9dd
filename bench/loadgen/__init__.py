"""MLCommons' LoadGen against Ekiben: ``python -m bench.loadgen``."""
