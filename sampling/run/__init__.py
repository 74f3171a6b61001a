"""One run: what is claimed before anything is drawn, the trunk that every run goes through, and the sinks of its images."""
