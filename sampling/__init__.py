"""Drawing samples: what is to be drawn and by whom, the noise, the files, and the engine that ties them together."""

import fiducial  # noqa: F401 (which finds the packages of a checkout)
