"""Pseudo-labels and intensity views as MONAI transforms."""
