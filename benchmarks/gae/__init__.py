"""The strongest published recipe that runs on DGL, with its sampler swapped (protocol D)."""
