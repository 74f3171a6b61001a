"""Diffusion numerics: schedules, parameterisations, samplers. Tensors in, tensors out; a model is a callable."""

import fiducial  # noqa: F401 (which finds the packages of a checkout)
