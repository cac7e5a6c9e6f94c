"""How near Keras on JAX runs to a GPU's matrix peak, and to diffusers, under sets of XLA flags: `python -m benchmarks.gpu`."""
