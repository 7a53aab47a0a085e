"""Parcellations of the mask, and region series of runs."""
