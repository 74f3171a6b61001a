"""Drawing samples: what is to be drawn and by whom, the noise, the files, and the engine that ties them together."""
