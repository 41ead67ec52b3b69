"""Systems under the module names of ASTRA-RL."""
