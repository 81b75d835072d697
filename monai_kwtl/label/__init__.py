"""The MONAI Label app: what to label next, over REST. Only the modules that say so need the package monailabel."""
