"""Why two sets of images have different FIDs: `fiducial diagnose A B`."""
