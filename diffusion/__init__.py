"""Diffusion numerics: schedules, parameterisations, samplers. Tensors in, tensors out; a model is a callable."""
